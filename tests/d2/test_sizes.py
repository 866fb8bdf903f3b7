"""The sizes of configs/common/models/sizes.py: their ViTs are timm's, and docs/MODEL_ZOO.md counts them right."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from detectron2.config import LazyConfig
from omegaconf import OmegaConf
from torch import nn

from comer_d2.network import ViT, ViTCoMerNet

ROOT = Path(__file__).parents[2]
comer_size, freeze, VIT = LazyConfig.load(
    str(ROOT / "configs/common/models/sizes.py"), ("comer_size", "freeze", "VIT")
)
DINOV3: dict[str, Any] = {
    "use_abs_pos": False,
    "rope": "dinov3",
    "layer_norm_eps": 1e-5,
    "num_prefix_tokens": 5,
    "qkv_bias": "none",
}
WITHOUT_SCALE = {"layer_scale_init": None}
DINOV2 = {"pretrain_img_size": 592}
# Size -> timm's model of it, and what its pretraining computes differently (docs/PRETRAINED.md).
OF_TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "T": ("vit_tiny_patch16_224", WITHOUT_SCALE),
    "S": ("vit_small_patch14_dinov2", DINOV2),
    "B": ("vit_base_patch14_dinov2", DINOV2),
    "L": ("vit_large_patch14_dinov2", DINOV2),
    "SO400M": ("vit_so400m_patch16_siglip_512", {"pretrain_img_size": 512} | WITHOUT_SCALE),
    "H+": ("vit_huge_plus_patch16_dinov3", DINOV3),
    "EVA-g": ("eva_giant_patch14_224", {"qkv_bias": "qv", "num_prefix_tokens": 1} | WITHOUT_SCALE),
    "g": ("vit_giant_patch14_dinov2", DINOV2),
    "7B": ("vit_7b_patch16_dinov3", DINOV3),
}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def comer_of(size: str, frozen: bool = False) -> ViTCoMerNet:
    """The ViT-CoMer of a size, without memory."""
    node = OmegaConf.create({"vit": {}})
    comer_size(node, size)
    if frozen:
        freeze(node)
    arguments = OmegaConf.to_container(node)
    vit = {**arguments.pop("vit"), **OF_TIMM[size][1]}
    with torch.device("meta"):
        return ViTCoMerNet(ViT(**vit), **arguments)


def states(module: nn.Module) -> float:
    """GiB of weights, and of trained ones' gradients and AdamW's averages."""
    parameters = list(module.parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return (sum(p.numel() * p.element_size() for p in parameters) + 12 * trained) / 2**30


def documented() -> dict[str, list[str]]:
    """Size -> parameters of the ViT and of the ViT-CoMer, states trained and frozen, in docs/MODEL_ZOO.md."""
    section = (ROOT / "docs" / "MODEL_ZOO.md").read_text().split("\n## Beyond L\n")[1]
    row = r"^\| ([\w+-]+), [^|]*\| ([\d.]+)M \| ([\d.]+)M \| ([\d.]+) \| ([\d.]+) \|"
    return {size: cells for size, *cells in re.findall(row, section, re.MULTILINE)}


@pytest.mark.parametrize("size", OF_TIMM)
def test_every_block_has_the_parameters_of_timms(size: str) -> None:
    name, _ = OF_TIMM[size]
    net = comer_of(size)
    with torch.device("meta"):
        reference = timm.create_model(name, num_classes=0)
    assert len(net.vit.blocks) == len(reference.blocks)
    assert count(net.vit.blocks) == count(reference.blocks)
    assert net.vit.computation["num_heads"] == reference.blocks[0].attn.num_heads
    assert [net.vit.blocks[last].attn.window_size for _, last in net.interaction_indexes] == [0] * 4
    if size in documented():
        figures = [count(net.vit) / 1e6, count(net) / 1e6, states(net)]
        figures.append(states(comer_of(size, frozen=True)))
        assert documented()[size] == [f"{figure:.1f}" for figure in figures]


def test_no_size_is_left_out() -> None:
    assert set(OF_TIMM) == set(VIT)
    assert set(documented()) == set(OF_TIMM) - {"T", "S", "B"}
