"""Resizing of feature maps."""

import torch.nn.functional as F
from torch import Tensor

from ..ops.registry import without_autocast


def resize_bilinear(x: Tensor, like: Tensor) -> Tensor:
    """Resizes a map (B, D, H, W) to the size of another, bilinear, ``align_corners=False``."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    # In the map's own type, which autocast would widen on a CPU: the weights are float32 anyway.
    with without_autocast(x):
        return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
