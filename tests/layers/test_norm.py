"""Layer norms: PyTorch's in the type of their input, autocast's type under autocast."""

import pytest
import torch
from torch import nn

from comer_d2.layers.norm import LayerNorm
from tests.device import autocast

HALF = [torch.bfloat16, torch.float16]


def norms(dim: int) -> tuple[LayerNorm, nn.LayerNorm]:
    own, torchs = LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)
    nn.init.normal_(own.weight, 1, 0.3)
    nn.init.normal_(own.bias)
    torchs.load_state_dict(own.state_dict())
    return own, torchs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_autocast_it_is_pytorchs(dtype: torch.dtype) -> None:
    own, torchs = (norm.to(dtype) for norm in norms(24))
    x = torch.randn(2, 5, 24, dtype=dtype)
    assert torch.equal(own(x), torchs(x))


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("given", [torch.float32, *HALF])
def test_autocasts_type_with_float32_statistics(dtype: torch.dtype, given: torch.dtype) -> None:
    """A mean of 100 leaves nothing of a deviation of 0.1 to half statistics."""
    own, exact = norms(256)
    exact.double()
    x = (100 * torch.randn(2, 5, 1) + torch.randn(2, 5, 256)).to(given).requires_grad_()
    rounded = x.detach().to(dtype).double().requires_grad_()
    with autocast(dtype):
        y = own(x)
    assert y.dtype == dtype
    expected = exact(rounded)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(y.double(), expected, atol=4 * eps, rtol=2 * eps)
    cotangent = torch.randn_like(expected)
    y.backward(cotangent.to(dtype))
    expected.backward(cotangent)
    for grad, wanted in (
        (x.grad, rounded.grad),
        (own.weight.grad, exact.weight.grad),
        (own.bias.grad, exact.bias.grad),
    ):
        assert (grad.double() - wanted).norm() < 2 * eps * wanted.norm()
    assert own.weight.grad.dtype == torch.float32 and x.grad.dtype == given


def test_float64_is_left_alone_under_autocast() -> None:
    own = norms(24)[0].double()
    with autocast(torch.bfloat16):
        assert own(torch.randn(3, 24, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("arguments", [{"elementwise_affine": False}, {"bias": False}])
def test_without_affine_parts(arguments: dict[str, bool]) -> None:
    norm = LayerNorm(24, **arguments)
    with autocast(torch.bfloat16):
        assert norm(torch.randn(3, 24)).dtype == torch.bfloat16
