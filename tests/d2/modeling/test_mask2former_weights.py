"""An official Mask2Former's checkpoint as train.init_checkpoint of a Mask2Former on ViT-CoMer."""

import pickle
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from torch import Tensor, nn

from comer_d2.d2.engine.checkpoint import load_checkpoint
from comer_d2.d2.errors import UserError
from comer_d2.weights.origins.mask2former import PIXEL_DECODER, layout

ROOT = Path(__file__).parents[3]
KEYS = ROOT / "tests" / "data" / "keys_m2f.txt"
# The official R50 model's sizes -> small ones. Heads, levels and points stay what they are.
SMALL = {256: 32, 768: 96, 1024: 64, 2048: 48, 100: 8, 151: 6}
# What depends on the backbone: its projections, channels R50 -> here.
OF_BACKBONE = r"sem_seg_head\.pixel_decoder\.(input_proj\.\d\.0|adapter_1)\.weight"
ALLOW = ["*.pixel_decoder.input_proj.*.0.weight", "*.pixel_decoder.adapter_1.weight"]
DIM = 24


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """configs/ADE20K/semantic/mask2former_comer_t.py with few channels and five classes."""
    cfg = LazyConfig.load(str(ROOT / "configs/ADE20K/semantic/mask2former_comer_t.py")).model
    cfg.backbone.vit.update(embed_dim=DIM, depth=4, num_heads=3, pretrain_img_size=64)
    cfg.backbone.update(
        interaction_indexes=[[i, i] for i in range(4)], deform_num_heads=3, num_extra_cti=1
    )
    width = {"num_heads": 8, "mask_dim": 32}
    cfg.sem_seg_head.pixel_decoder.update(in_channels=[DIM] * 4, conv_dim=32, ffn_dim=64, **width)
    cfg.sem_seg_head.predictor.update(
        in_channels=32, hidden_dim=32, ffn_dim=48, num_queries=8, num_classes=5, **width
    )
    torch.manual_seed(0)
    return instantiate(cfg)


def official(channels_of_backbone: dict[int, int]) -> dict[str, Tensor]:
    """A checkpoint with every official name, random numbers, and another backbone."""
    generator = torch.Generator().manual_seed(1)
    weights = {"backbone.stem.conv1.weight": torch.ones(4, 3, 7, 7)}
    for line in KEYS.read_text().splitlines():
        name, shape = line.split("\t")
        shape = [int(n) for n in re.findall(r"\d+", shape)]
        small = [SMALL.get(n, n) for n in shape]
        if re.fullmatch(OF_BACKBONE, name):
            small[1] = channels_of_backbone[shape[1]]
        weights[name] = torch.randn(small, generator=generator)
    return weights


def load(
    model: nn.Module, weights: dict[str, Tensor], path: Path, allow: list[str]
) -> dict[str, Tensor]:
    """Loads it as a run does, from the pickle of arrays that the project publishes.

    Returns what the model had before.
    """
    arrays = {name: tensor.numpy() for name, tensor in weights.items()}
    path.write_bytes(pickle.dumps({"model": arrays, "__author__": "third_party"}, protocol=2))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_checkpoint(model, str(path), complete=False, allow=allow)
    return before


def test_a_head_of_the_same_backbone_channels_loads_whole(model: nn.Module, tmp_path: Path) -> None:
    weights = official(dict.fromkeys([256, 512, 1024, 2048], DIM))
    before = load(model, weights, tmp_path / "model_final.pkl", [])
    after, head = model.state_dict(), layout(PIXEL_DECODER).read(weights).tensors
    for name, tensor in after.items():
        if name.startswith("backbone."):
            assert torch.equal(tensor, before[name]), name  # fresh
        else:
            assert torch.equal(tensor, head.pop(name)), name
    assert not head
    model.train()
    batch = [{"image": torch.rand(3, 64, 64), "sem_seg": torch.arange(64 * 64).view(64, 64) % 5}]
    assert all(torch.isfinite(loss) for loss in model(batch).values())


def test_the_projections_of_a_resnet_may_be_left_out(model: nn.Module, tmp_path: Path) -> None:
    weights = official({256: 26, 512: 51, 1024: 102, 2048: 204})
    path = tmp_path / "model_final.pkl"
    with pytest.raises(
        UserError, match=r"input_proj\.0\.0\.weight: of shape \(32, 204, 1, 1\), in the"
    ):
        load(model, weights, path, [])
    before = load(model, weights, path, ALLOW)
    head = layout(PIXEL_DECODER).read(weights).tensors
    for name, tensor in model.state_dict().items():
        kept = name.startswith("backbone.") or re.fullmatch(OF_BACKBONE, name)
        assert torch.equal(tensor, before[name] if kept else head[name]), name


def test_another_number_of_classes(model: nn.Module, tmp_path: Path) -> None:
    weights = official(dict.fromkeys([256, 512, 1024, 2048], DIM))
    classes = ["*.class_embed.*", "criterion.empty_weight"]
    for name, tensor in weights.items():
        if "class_embed" in name or name == "criterion.empty_weight":
            weights[name] = torch.cat([tensor, tensor])
    path = tmp_path / "model_final.pkl"
    with pytest.raises(
        UserError, match=r"class_embed\.weight: of shape \(12, 32\), in the model \(6, 32\)"
    ):
        load(model, weights, path, [])
    before = load(model, weights, path, classes)
    kept = model.state_dict()["sem_seg_head.predictor.class_embed.weight"]
    assert torch.equal(kept, before["sem_seg_head.predictor.class_embed.weight"])
