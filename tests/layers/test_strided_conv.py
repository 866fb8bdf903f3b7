"""The strided convolution's gradients on the smallest maps, under autocast."""

import copy

import pytest
import torch
from torch import nn

from comer_d2.layers.levels import Levels
from comer_d2.layers.strided_conv import StridedConv2d
from tests.device import autocast


def gradients(
    conv: nn.Conv2d, x: torch.Tensor, cotangent: torch.Tensor, dtype: torch.dtype | None
) -> list[torch.Tensor]:
    with autocast(dtype or torch.bfloat16, enabled=dtype is not None):
        y = conv(x)
    assert y.dtype == (dtype or torch.float32)
    return list(torch.autograd.grad(y.float(), [conv.weight, conv.bias, x], cotangent))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("side", [(1, 1), (5, 1), (1, 5), (2, 2)])
def test_gradients_under_autocast_are_near_those_of_float32(
    side: tuple[int, int], dtype: torch.dtype
) -> None:
    """Whatever lies in the memory that a kernel gets: it is filled with NaN before."""
    conv = StridedConv2d(16, 16, 3, stride=2, padding=1)
    levels = Levels(((4, 4), side))
    for _ in range(8):
        x = levels.maps(torch.randn(2, 16 + side[0] * side[1], 16))[1].detach().requires_grad_()
        cotangent = torch.randn(2, 16, *(-(-n // 2) for n in side))
        expected = gradients(conv, x, cotangent, None)
        litter = [torch.full_like(conv.weight, torch.nan) for _ in range(4)]
        del litter
        for found, wanted in zip(gradients(conv, x, cotangent, dtype), expected, strict=True):
            assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_gradients_of_a_module_in_bfloat16_are_near_those_of_float32() -> None:
    conv = StridedConv2d(16, 16, 3, stride=2, padding=1)
    half = copy.deepcopy(conv).bfloat16()
    for _ in range(8):
        x, cotangent = torch.randn(2, 16, 5, 1), torch.randn(2, 16, 3, 1)
        wanted = torch.autograd.grad(conv(x), conv.weight, cotangent)[0]
        litter = [torch.full_like(half.weight, torch.nan) for _ in range(4)]
        del litter
        y = half(x.bfloat16())
        found = torch.autograd.grad(y, half.weight, cotangent.bfloat16())[0]
        assert (found - wanted).norm() < 0.02 * wanted.norm()
