"""Boxes as what a head predicts: deltas of an anchor, or distances from a point to the sides."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

# A delta makes an anchor at most 62.5 times larger or smaller, as in Fast R-CNN's released code.
LARGEST_LOG_SCALE = math.log(1000 / 16)


def decode_deltas(deltas: Tensor, anchors: Tensor, scales: Sequence[float]) -> Tensor:
    """Boxes from shifts of the center, in sides of the anchor, and log scales of the sides.

    Source: Sec. 3.1.2 of arXiv 1506.01497, with both kinds of delta scaled and the scale limited.

    Args:
        deltas: (..., 4): dx, dy, dw, dh.
        anchors: (..., 4): x1, y1, x2, y2.
        scales: what the four deltas are multiplied with.

    Returns:
        (..., 4): x1, y1, x2, y2 in the anchors' unit.
    """
    deltas = deltas * deltas.new_tensor(scales)
    sides = anchors[..., 2:] - anchors[..., :2]
    centers = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] * sides
    sides = sides * deltas[..., 2:].clamp(-LARGEST_LOG_SCALE, LARGEST_LOG_SCALE).exp()
    return torch.cat([centers - sides / 2, centers + sides / 2], dim=-1)


def decode_distances(distances: Tensor, points: Tensor) -> Tensor:
    """Boxes from the distances of a point to their left, top, right and bottom.

    Args:
        distances: (..., 4).
        points: (..., 2): x, y in the unit of the distances.

    Returns:
        (..., 4): x1, y1, x2, y2.
    """
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def encode_distances(boxes: Tensor, points: Tensor) -> Tensor:
    """Inverse of :func:`decode_distances`; negative for sides that the point is beyond."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)
