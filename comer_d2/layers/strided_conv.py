"""A strided convolution that is right on maps of one column, too."""

import torch
from torch import Tensor, nn

from ..ops.registry import is_autocast, without_autocast


class StridedConv2d(nn.Conv2d):
    """``torch.nn.Conv2d``; the same arguments, parameters and result.

    On a CPU, oneDNN's bfloat16 convolution of stride 2 leaves the gradient of the weights unwritten
    where its input has one column: what lay in the memory, NaN or any number, is what a step would learn
    from. Such a map, of a small image's coarsest level, is convolved in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C', H', W')."""
        dtype = torch.get_autocast_dtype("cpu") if is_autocast(x) else x.dtype
        if x.device.type != "cpu" or dtype != torch.bfloat16 or x.shape[-1] > 1:
            return super().forward(x)
        bias = None if self.bias is None else self.bias.float()
        with without_autocast(x):
            y = self._conv_forward(x.float(), self.weight.float(), bias)
        return y.to(dtype)
