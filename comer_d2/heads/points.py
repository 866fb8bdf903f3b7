"""Masks at points instead of pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of maps; zeros outside.

    Source: PointRend, Sec. 3.1 of arXiv 1912.08193.

    Args:
        maps: (N, C, H, W), of any type; read as float32, as half types are not exact enough.
        points: (N, P, 2) as (x, y); [0, 1] spans the map edge to edge.

    Returns:
        (N, C, P) float32.
    """
    grid = 2 * points.float()[:, :, None] - 1
    with torch.autocast(maps.device.type, enabled=False):
        return F.grid_sample(maps.float(), grid, align_corners=False)[..., 0]
