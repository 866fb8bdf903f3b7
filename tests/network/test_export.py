"""torch.export with free sides: one program that really runs at other sizes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from comer_d2.network import ViT
from tests.networks import TINY, TINY_VIT, make_network

# What pretraining families compute with the sides: relative positions, and rotary ones of two kinds.
FAMILIES: dict[str, dict[str, Any]] = {
    "beit": {"use_rel_pos_bias": True, "use_abs_pos": False, "num_prefix_tokens": 1},
    "eva02": {"rope": "eva02", "num_prefix_tokens": 1},
    "dinov3": {"rope": "dinov3", "use_abs_pos": False, "num_prefix_tokens": 5},
}
TABLE = (64, 64)  # the image whose map is the position table's
SIZES = [(64, 64), (96, 64), (192, 256), (160, 64), (96, 160)]


def check(net: nn.Module, sample: tuple[int, int], sides: dict[int, Any]) -> None:
    """Exports a network at one size, and compares it with itself at many."""
    net = net.eval()
    image = torch.randn(1, 3, *sample)
    with torch.no_grad():
        net(image)  # what it remembers of this size is to be no constant of the program
    exported = torch.export.export(net, (image,), dynamic_shapes=({0: None, **sides},))
    program = exported.module()
    for size in SIZES:
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            found, expected = program(image), net(image)
        if isinstance(expected, Tensor):
            found, expected = {"map": found}, {"map": expected}
        for name, value in expected.items():
            torch.testing.assert_close(
                found[name], value, atol=1e-4, rtol=1e-4, msg=f"{name} {size}"
            )


def multiples(of: int) -> dict[int, Any]:
    """Sides of at least two tokens of the coarsest level: one is a case of its own."""
    return {
        2: of * Dim("rows", min=2, max=2048 // of),
        3: of * Dim("columns", min=2, max=2048 // of),
    }


@pytest.mark.slow
def test_vit_comer_of_sides_that_divide() -> None:
    """As Detectron2 pads them; exported at the position table's own size, which is no special case."""
    torch.manual_seed(0)
    check(make_network(**TINY), TABLE, multiples(32))


@pytest.mark.parametrize("family", FAMILIES)
def test_vits_of_other_families(family: str) -> None:
    torch.manual_seed(0)
    check(ViT(**TINY_VIT, **FAMILIES[family]), (96, 160), multiples(16))
