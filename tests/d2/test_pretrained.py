"""From a pretrained ViT to a trained detector, as configs say it."""

import re
from pathlib import Path

import pytest
import timm
import torch
from detectron2.config import instantiate
from torch import Tensor

from comer_d2.d2.cli import main
from comer_d2.d2.engine.config import load_config
from comer_d2.d2.predictor import Predictor
from comer_d2.weights import WeightsError, load_weights
from tests.d2.runs import ROOT

CONFIG = str(ROOT / "tests/d2/tiny_comer.py")
BRANCH = "backbone.bottom_up.vit."


@pytest.fixture
def vit(tiny_coco: Path) -> dict[str, Tensor]:
    """A DeiT of the tiny network's size, in timm's names, at another size of images."""
    torch.manual_seed(0)
    return timm.create_model(
        "vit_tiny_patch16_224", embed_dim=24, depth=2, num_heads=3, img_size=96, num_classes=5
    ).state_dict()


@pytest.fixture
def file(vit: dict[str, Tensor], tmp_path: Path) -> Path:
    torch.save({"model": vit}, tmp_path / "deit.pth")
    return tmp_path / "deit.pth"


def run(output: Path, *arguments: str) -> int:
    return main(["--config-file", CONFIG, f"train.output_dir={output}", *arguments])


def assert_is_vit(weights: dict[str, Tensor], vit: dict[str, Tensor]) -> None:
    blocks = [name for name in vit if name.startswith(("blocks", "patch_embed"))]
    assert len(blocks) == 2 * 12 + 2
    for name in blocks:
        assert torch.equal(weights[BRANCH + name], vit[name]), name


def test_training_starts_from_it(
    file: Path,
    vit: dict[str, Tensor],
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
) -> None:
    output = tmp_path / "output"
    assert run(output, f"train.init_checkpoint={file}", "optimizer.lr=0.0") == 0
    assert_is_vit(torch.load(output / "model_final.pth")["model"], vit)
    printed = capfd.readouterr().out
    assert f"from '{file}'" in printed
    for line in (
        r"position +24 +864 +24 +-",
        r"blocks +14,448 +- +- +-",
        r"interactions +- +- +- +\d",
        r"resampled: pos_embed \(864\): positions of 6x6 to 4x4",
        r"not used: head\.weight, head\.bias \(125\): the family's own head",
    ):
        assert re.search(line, printed), line

    # What was trained from it needs it no longer.
    file.unlink()
    trained = f"train.init_checkpoint={output / 'model_final.pth'}"
    assert run(tmp_path / "evaluated", "--eval-only", trained) == 0
    assert run(output, "--resume", "train.max_iter=2") == 0
    cfg = load_config(str(output / "config.yaml"))
    model = Predictor(cfg, output / "model_final.pth").model
    assert any(name.startswith(BRANCH) for name in model.state_dict())


def test_parts_of_a_model_from_two_files(
    file: Path, vit: dict[str, Tensor], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    model = instantiate(load_config(CONFIG).model)
    heads = {n: v for n, v in model.state_dict().items() if n.startswith("roi_heads.box_head.")}
    torch.save({"model": heads}, tmp_path / "heads.pth")
    output, both = tmp_path / "output", f"train.init_checkpoint=[{tmp_path / 'heads.pth'},{file}]"
    assert run(output, both, "optimizer.lr=0.0") == 0
    weights = torch.load(output / "model_final.pth")["model"]
    assert_is_vit(weights, vit)
    assert all(torch.equal(weights[name], value) for name, value in heads.items())
    assert run(tmp_path / "evaluated", "--eval-only", both) == 2
    assert "evaluate one" in capfd.readouterr().err


def test_a_pretraining_is_no_model_to_evaluate(
    file: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    assert run(tmp_path / "output", "--eval-only", f"train.init_checkpoint={file}") == 2
    printed = capfd.readouterr().err
    assert f"train_net.py: error: checkpoint '{file}'" in printed
    assert "Train from it first" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"blocks.1.mlp.fc2.bias": None}, "blocks.1.mlp.fc2.bias"),
        ({"blocks.2.norm1.weight": torch.ones(24)}, "blocks.2.norm1.weight"),
        ({"pos_embed": torch.full((1, 37, 24), torch.nan)}, "pos_embed"),
    ],
)
def test_one_that_does_not_fit_is_one_clear_error(
    damage: dict[str, Tensor | None],
    message: str,
    vit: dict[str, Tensor],
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
) -> None:
    damaged = {name: value for name, value in {**vit, **damage}.items() if value is not None}
    torch.save(damaged, tmp_path / "damaged.pth")
    assert run(tmp_path / "output", f"train.init_checkpoint={tmp_path / 'damaged.pth'}") == 2
    printed = capfd.readouterr().err
    assert "train_net.py: error: " in printed
    assert message in printed
    assert "Traceback" not in printed


def test_the_plain_vit_baseline_takes_it_too() -> None:
    cfg = load_config(str(ROOT / "configs/quickstart/mask_rcnn_vit_digits.py"))
    cfg.model.roi_heads.num_classes = 10
    model = instantiate(cfg.model)
    net = model.backbone.net
    torch.manual_seed(0)
    vit = timm.create_model(
        "vit_tiny_patch16_224",
        embed_dim=net.pos_embed.shape[-1],
        depth=len(net.blocks),
        num_heads=net.blocks[0].attn.num_heads,
        img_size=128,
        num_classes=0,
    ).state_dict()
    report = load_weights(model, vit)
    assert report.counts()["blocks"] == {
        "loaded": sum(value.numel() for name, value in vit.items() if name.startswith("blocks")),
        "neutral": len(net.blocks) * 2 * 64,  # layer scales
    }
    for name, value in vit.items():
        if name.startswith(("blocks", "patch_embed")):
            assert torch.equal(model.state_dict()[f"backbone.net.{name}"], value), name
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(WeightsError, match=r"blocks\.1\.attn\.qkv\.weight"):
        load_weights(model, {n: v for n, v in vit.items() if n != "blocks.1.attn.qkv.weight"})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
