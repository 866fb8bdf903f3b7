"""Resizing of position tables is PyTorch's, rotary positions are timm's, number by number."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import RotaryEmbeddingDinoV3

from comer_d2.layers.positions import (
    CentredRotaryPositions,
    resize_bicubic,
    resize_position_table,
)
from tests.device import autocast

SIZES = [(14, 14), (9, 20), (37, 5), (1, 3)]


@pytest.mark.parametrize("size", SIZES)
def test_equals_bicubic_interpolation_with_its_gradient(size: tuple[int, int]) -> None:
    grid = torch.randn(2, 14, 11, 3, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(2, *size, 3, dtype=torch.float64)
    maps = F.interpolate(grid.permute(0, 3, 1, 2), size=size, mode="bicubic", align_corners=False)
    expected = maps.permute(0, 2, 3, 1)
    resized = resize_bicubic(grid, *size)
    torch.testing.assert_close(resized, expected, atol=1e-13, rtol=0)
    grads = [torch.autograd.grad(x, grid, cotangent)[0] for x in (resized, expected)]
    torch.testing.assert_close(*grads, atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_table_is_resized_in_float32_or_better(dtype: torch.dtype) -> None:
    table = torch.randn(1, 49, 8).to(dtype)
    expected = resize_position_table(table.double(), 5, 12)
    with autocast(torch.bfloat16):
        resized = resize_position_table(table, 5, 12)
    assert resized.dtype == dtype
    torch.testing.assert_close(resized, expected.to(dtype), atol=2e-6, rtol=torch.finfo(dtype).eps)


def test_a_table_of_the_size_is_itself() -> None:
    table = torch.randn(1, 49, 8)
    assert resize_position_table(table, 7, 7) is table


@pytest.mark.parametrize("size", SIZES)
def test_dinov3s_rotary_positions(size: tuple[int, int]) -> None:
    positions = CentredRotaryPositions(16).bfloat16()
    assert not positions.state_dict()
    assert torch.equal(positions.get_embed(size), RotaryEmbeddingDinoV3(16).get_embed(list(size)))
