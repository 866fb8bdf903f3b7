"""The linear layer that goes by convolution equals PyTorch's, whatever it is given."""

import pytest
import torch
import torch.nn.functional as F
from timm.layers import Mlp
from torch import nn

from comer_d2.layers.linear import Linear, by_convolution, linear, with_own_linears
from tests.device import autocast


@pytest.mark.parametrize(
    "shape", [(2, 50, 24), (2, 48, 24), (16, 24), (7, 24), (24,), (1, 1, 24), (2, 3, 5, 24)]
)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_equal_those_in_float64(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    assert by_convolution(x, torch.randn(40, 24)) == (x.device.type == "cpu")
    inputs = [x, torch.randn(40, 24), *([torch.randn(40)] if bias else [])]
    own = [t.clone().requires_grad_() for t in inputs]
    exact = [t.double().requires_grad_() for t in inputs]
    output, expected = linear(*own), F.linear(*exact)
    grad = torch.randn(expected.shape)
    torch.testing.assert_close(output.double(), expected, atol=2e-5, rtol=0)
    gradients = torch.autograd.grad(output, own, grad)
    for ours, theirs in zip(
        gradients, torch.autograd.grad(expected, exact, grad.double()), strict=True
    ):
        torch.testing.assert_close(ours.double(), theirs, atol=5e-5, rtol=0)


def test_rows_that_do_not_lie_side_by_side() -> None:
    x = torch.randn(2, 24, 6, 5).permute(0, 2, 3, 1)
    w = torch.randn(8, 24)
    for part in (x[:, ::2], x[:, :, 1:]):  # 30 and 48 rows
        torch.testing.assert_close(linear(part, w), F.linear(part, w), atol=2e-5, rtol=0)


@pytest.mark.parametrize("shape", [(0, 24), (2, 0, 24)])
def test_no_rows(shape: tuple[int, ...]) -> None:
    assert linear(torch.zeros(shape), torch.zeros(8, 24)).shape == (*shape[:-1], 8)


def test_other_types_and_autocast_are_left_to_pytorch() -> None:
    x, weight = torch.randn(4, 24), torch.randn(8, 24)
    assert not by_convolution(x.double(), weight.double())
    assert not by_convolution(x.bfloat16(), weight.bfloat16())
    with autocast(torch.bfloat16):
        assert not by_convolution(x, weight)
        assert linear(x, weight).dtype == torch.bfloat16


def test_a_library_module_keeps_its_weights() -> None:
    mlp = Mlp(8, 16)
    x = torch.randn(3, 8)
    expected = mlp(x)
    names = set(mlp.state_dict())
    with_own_linears(mlp)
    assert {type(m) for m in mlp.modules() if isinstance(m, nn.Linear)} == {Linear}
    assert set(mlp.state_dict()) == names
    torch.testing.assert_close(mlp(x), expected, atol=1e-6, rtol=0)
