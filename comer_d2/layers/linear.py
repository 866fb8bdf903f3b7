"""Linear layers through the faster of the CPU's two matrix libraries."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.registry import is_autocast


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``torch.nn.functional.linear``; in float32 on a CPU, a 1x1 convolution with the same result.

    In float32 PyTorch gives matrix products to MKL and convolutions to oneDNN. On AMD's processors
    MKL runs at half of oneDNN's speed (docs/architecture.md has the figures). Tokens are
    channels-last rows already, so that neither way copies them.

    Weights that are kept in bfloat16, as a frozen ViT's can be, are multiplied in it, whatever the type
    of ``x`` and of the result; under autocast, that says the type.

    Args:
        x: (..., I).
        weight: (O, I).
        bias: (O,).

    Returns:
        (..., O), of the type of ``x``, or under autocast of its.
    """
    if weight.dtype == torch.bfloat16 and x.dtype == torch.float32 and not is_autocast(x):
        return F.linear(x.bfloat16(), weight, bias).float()
    if not by_convolution(x, weight):
        return F.linear(x, weight, bias)
    # With one thread PyTorch gives oneDNN only 1x1 convolutions of at least 16 images.
    images = 16 if x.shape[:-1].numel() % 16 == 0 else 1
    rows = x.reshape(images, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    output = F.conv2d(rows, weight[:, :, None, None], bias)
    return output.permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def by_convolution(x: Tensor, weight: Tensor) -> bool:
    """Whether a convolution is the better linear layer.

    Compilers choose for themselves, and weights of a type of their own, such as quantised ones,
    bring their own matrix product.
    """
    return (
        type(weight) in (Tensor, nn.Parameter)
        and not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()
        and not torch.is_autocast_enabled("cpu")
    )


class Linear(nn.Linear):
    """``torch.nn.Linear`` through :func:`linear`; the same arguments, parameters and result."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., I) -> (..., O)."""
        return linear(x, self.weight, self.bias)


def with_own_linears(module: nn.Module) -> nn.Module:
    """Replaces the linear layers directly inside a module, such as timm's Mlp, by :class:`Linear`."""
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            own = Linear(child.in_features, child.out_features, bias=child.bias is not None)
            own.load_state_dict(child.state_dict())
            setattr(module, name, own)
    return module
