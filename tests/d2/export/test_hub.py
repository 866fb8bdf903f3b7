"""A folder to share: whole, without paths of this machine, loadable, and uploaded through the hub's own client."""

import json
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from comer_d2 import load
from comer_d2.__main__ import main
from comer_d2.d2.engine.config import load_config
from comer_d2.d2.errors import UserError
from comer_d2.d2.export.hub import described, push, shareable
from comer_d2.heads.eomt import EoMT
from comer_d2.network import ViT, ViTCoMerNet
from comer_d2.network.timm_pyramid import TimmPyramid
from tests.d2.runs import ROOT
from tests.d2.untrained import DETECTOR, write_digits, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    run = write_run(folder / "run", write_digits(folder), DETECTOR)
    state = torch.load(run / "model_final.pth")
    torch.save({**state, "iteration": 9}, run / "model_final.pth")
    return run


def write_evaluation(run: Path, iteration: int) -> None:
    results = {"bbox": {"AP": 12.345, "APl": None, "AP-3": 1.0}}
    (run / "evaluation.json").write_text(json.dumps({"iteration": iteration, "results": results}))


def test_folder_holds_the_model_and_nothing_of_this_machine(run: Path, tmp_path: Path) -> None:
    write_evaluation(run, 9)
    shared = tmp_path / "shared"
    arguments = ["--format", "hub", "--license", "cc-by-4.0", "--title", "Digits"]
    assert main(["export", str(run), str(shared), *arguments]) == 0
    assert sorted(p.name for p in shared.iterdir()) == ["README.md", "config.yaml", "model.safetensors"]  # fmt: skip
    text = "".join((shared / name).read_text() for name in ("README.md", "config.yaml"))
    assert str(run.parent) not in text
    card = huggingface_hub.ModelCard.load(shared / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert "# Digits" in card.text
    assert "\nGeneralizedRCNN on ViT-CoMer, " in card.text
    assert card.data.tags == ["vit-comer", "detectron2"]
    assert "| bbox AP | 12.35 |" in card.text or "| bbox AP | 12.34 |" in card.text
    assert "AP-3" not in card.text

    photo = run.parent / "digits" / "val" / "00001.png"
    before, after = (load(source)(photo, threshold=0.0) for source in (run, shared))
    assert len(before) > 0
    np.testing.assert_array_equal(before.boxes, after.boxes)
    np.testing.assert_array_equal(before.masks, after.masks)

    write_evaluation(run, 8)  # of another checkpoint: no figures
    assert main(["export", str(run), str(tmp_path / "other"), *arguments]) == 0
    assert "12.3" not in (tmp_path / "other" / "README.md").read_text()


@pytest.mark.parametrize("leaf", ["mask_rcnn_comer_s", "mask2former_comer_s_panoptic", "mask2former_comer_s_semantic"])  # fmt: skip
def test_no_path_of_any_kind_of_data_is_shared(leaf: str) -> None:
    path = ROOT / "configs" / "custom" / f"{leaf}.py"
    keys = [key for key in load_config(str(path)).dataset if key.startswith(("train_", "val_"))]
    cfg = load_config(str(path), [f"dataset.{key}=/home/me/{key}" for key in keys])
    assert len(keys) >= 4 and "/home/me/" in OmegaConf.to_yaml(cfg.dataset)
    assert "/home/me/" not in OmegaConf.to_yaml(shareable(cfg).dataset)


def test_a_card_says_what_the_model_stands_on() -> None:
    class Detector(nn.Module):
        def __init__(self, backbone: nn.Module) -> None:
            super().__init__()
            self.backbone = backbone

    def vit() -> ViT:
        return ViT(embed_dim=8, depth=4, num_heads=2, window_block_indexes=())

    small = {"stem_width": 8, "deform_num_heads": 4}
    on_convnext = ViTCoMerNet(TimmPyramid("test_convnext"), vit_features="stages", **small)
    for backbone, words in (
        (ViTCoMerNet(vit(), mrfp_ratio=1.0, **small), "Detector on ViT-CoMer"),
        (on_convnext, "Detector on ViT-CoMer around test_convnext"),
        (nn.Sequential(TimmPyramid("test_convnext")), "Detector on test_convnext"),
        (nn.Sequential(vit()), "Detector on a plain ViT"),
        (EoMT(vit(), num_classes=2), "EoMT (Detector)"),
        (nn.Identity(), "Detector"),
    ):
        assert described(Detector(backbone)) == words


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "hub", "--batch", "dynamic"), "--batch is for programs"),
        (("--format", "hub", "--fixed-size", "64", "64"), "--fixed-size is for programs"),
        (("--format", "onnx", "--license", "mit"), "--license is for a folder"),
    ],
)
def test_options_in_vain(capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str) -> None:  # fmt: skip
    assert main(["export", "no_run", "out", *options]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("options", [("--dtype", "bfloat16"), ("--flip",), ("--scales", "1", "2")])
def test_options_of_predictions_are_none_of_a_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    assert main(["export", str(run), str(tmp_path / "out"), "--format", "hub", *options]) == 2
    assert "dtype, scales and flip are chosen where it is loaded" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    assert main(["export", str(run), str(tmp_path), "--format", "hub"]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_push_and_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a hub that writes down what it is asked."""
    with pytest.raises(UserError, match=r"lacks model\.safetensors, config\.yaml"):
        push(tmp_path, "me/digits")
    for name in ("model.safetensors", "config.yaml", "README.md"):
        (tmp_path / name).touch()
    asked = []

    class Stub:
        def create_repo(self, name: str, **options: object) -> None:
            asked.append((name, options))

        def upload_folder(self, *, repo_id: str, folder_path: Path) -> str:
            asked.append((repo_id, {p.name for p in folder_path.iterdir()}))
            return f"hub/{repo_id}"

    monkeypatch.setattr(huggingface_hub, "HfApi", Stub)
    assert push(tmp_path, "me/digits") == "hub/me/digits"
    assert asked[0] == ("me/digits", {"private": True, "exist_ok": True})
    assert asked[1] == ("me/digits", {"model.safetensors", "config.yaml", "README.md"})


def test_load_from_the_hub(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(name: str, *, revision: str | None) -> str:
        assert (name, revision) == ("me/digits", "v1")
        return str(run)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load("hf:me/digits@v1").class_names == list("0123456789")
    monkeypatch.undo()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hf:me/nothing-like-this"):
        load("hf:me/nothing-like-this")
