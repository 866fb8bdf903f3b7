"""A strided convolution that is right on maps of one column, too."""

import torch
from torch import Tensor, nn

from ..ops.registry import is_autocast, without_autocast


class StridedConv2d(nn.Conv2d):
    """``torch.nn.Conv2d``; the same arguments, parameters and result.

    On a CPU, oneDNN's bfloat16 convolution of stride 2 leaves the gradient of the weights unwritten
    where its input has one column: what lay in the memory, NaN or any number, is what a step would learn
    from. Under autocast such a map, of a small image's coarsest level, is convolved in the weights' type.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        if not is_autocast(x) or x.device.type != "cpu" or x.shape[-1] > 1:
            return super().forward(x)
        with without_autocast(x):
            y = super().forward(x.to(self.weight.dtype))
        return y.to(torch.get_autocast_dtype("cpu"))
