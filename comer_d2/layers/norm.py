"""Layer norms and layer scales that stay in autocast's type."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops.registry import is_autocast


class LayerNorm(nn.LayerNorm):
    """``torch.nn.LayerNorm`` that reads and writes autocast's type; the same arguments and parameters.

    PyTorch's autocast makes float32 of a norm's input and output, which the next linear layer makes
    narrow again: three times the memory traffic, to round once less. The statistics and the
    arithmetic are float32 here, too. Without autocast it is PyTorch's layer norm.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C), in autocast's type where autocast is on."""
        device = x.device.type
        if x.dtype == torch.float64 or not is_autocast(x):
            return super().forward(x)
        dtype = torch.get_autocast_dtype(device)
        weight: Tensor | None = self.weight
        bias: Tensor | None = self.bias
        if device != "cpu":
            # CUDA's kernel takes weights in the input's type only, and keeps the statistics in
            # float32; a CPU's would keep those, too, in the type of the weights.
            weight, bias = (None if t is None else t.to(dtype) for t in (weight, bias))
        with torch.autocast(device, enabled=False):
            return F.layer_norm(x.to(dtype), self.normalized_shape, weight, bias, self.eps)


class LayerScale(nn.Module):
    """A learned factor for every channel, rounded to the type of what it scales.

    Args:
        dim: channels D of a token.
        init: initial value.
    """

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), float(init)))

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D) of the same type: under autocast nothing is widened."""
        return x * self.gamma.to(x.dtype)
