"""One square anchor for every cell of every pyramid level."""

from collections.abc import Sequence

import torch
from torch import Tensor


def square_anchors(maps: Sequence[Tensor], strides: Sequence[int], scale: float) -> list[Tensor]:
    """Squares of ``scale * stride`` pixels around the upper left corner of every cell.

    Not around the middle of the cell: ATSS and GFL are published and trained so.

    Args:
        maps: of every level, (..., H, W); only size and device are read.
        strides: of every level, pixels.
        scale: side of the square in strides.

    Returns:
        For every level (H, W, 4) float32, x1, y1, x2, y2 in pixels.
    """
    anchors = []
    for level, stride in zip(maps, strides, strict=True):
        height, width = level.shape[-2:]
        x = torch.arange(width, device=level.device, dtype=torch.float32) * stride
        y = torch.arange(height, device=level.device, dtype=torch.float32) * stride
        centers = torch.stack(
            [x[None, :].expand(height, width), y[:, None].expand(height, width)], dim=-1
        )
        half = scale * stride / 2
        anchors.append(torch.cat([centers - half, centers + half], dim=-1))
    return anchors


def anchor_centers(anchors: Tensor) -> Tensor:
    """(..., 4) boxes -> (..., 2) x, y."""
    return (anchors[..., :2] + anchors[..., 2:]) / 2
