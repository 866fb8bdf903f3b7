"""Masks at points instead of pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor

MASKS_AT_A_TIME = 8


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


def sample_masks(masks: Tensor, points: Tensor, chosen: Tensor | None = None) -> Tensor:
    """:func:`sample_points` of objects' masks, which stay bool: a few at a time become float32.

    They have the size of the image, so that all of them as float32 would be most of the loss's
    memory.

    Args:
        masks: (N, H, W), 0 and 1, of any type.
        points: (M, P, 2), or (1, P, 2) for all, as (x, y); [0, 1] spans the masks edge to edge.
        chosen: (M,) int64, the masks that are sampled; None: all.

    Returns:
        (M, P) float32.
    """
    if chosen is None:
        chosen = torch.arange(len(masks), device=masks.device)
    points = points.expand(len(chosen), -1, -1)
    if not len(chosen):
        return points.new_zeros(points.shape[:2], dtype=torch.float32)
    parts = zip(chosen.split(MASKS_AT_A_TIME), points.split(MASKS_AT_A_TIME), strict=True)
    return torch.cat([sample_points(masks[part, None], at)[:, 0] for part, at in parts])
