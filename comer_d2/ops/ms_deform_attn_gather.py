"""Multi-scale deformable attention in elementary operations, for runtimes that have no operator of ours.

Bilinear interpolation as four gathers: TensorRT is known to compile `GridSample` wrongly inside such attention, so
nothing here is one. The sizes of the levels may be symbolic.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def ms_deform_attn_gather(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """`ms_deform_attn_reference` by gathers; arguments and result as there.

    Source: Eq. 3 of arXiv 2010.04159.
    """
    parts, start = [], 0
    for level, (height, width) in enumerate(spatial_shapes):
        x, y = sampling_locations[:, :, :, level].unbind(-1)
        pixels = x * width - 0.5, y * height - 0.5
        weights = attention_weights[:, :, :, level]
        parts.append(_sample(value, start, (height, width), pixels, weights))
        start = start + height * width
    return torch.stack(parts).sum(0)


def ms_deform_attn_fused_gather(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    projected: Tensor,
    reference_points: Tensor,
) -> Tensor:
    """`ms_deform_attn_fused_reference` by gathers; arguments and result as there."""
    heads, levels = value.shape[2], len(spatial_shapes)
    points = projected.shape[2] // (3 * heads * levels)
    offsets, logits = projected.split([2 * heads * levels * points, heads * levels * points], -1)
    offsets = offsets.unflatten(-1, (heads, levels, points, 2))
    attention = logits.unflatten(-1, (heads, levels * points)).softmax(-1)
    attention = attention.unflatten(-1, (levels, points))
    parts, start = [], 0
    for level, (height, width) in enumerate(spatial_shapes):
        point = reference_points[:, :, min(level, reference_points.shape[2] - 1), None, None]
        x, y = offsets[:, :, :, level].unbind(-1)
        pixels = point[..., 0] * width + x - 0.5, point[..., 1] * height + y - 0.5
        parts.append(_sample(value, start, (height, width), pixels, attention[:, :, :, level]))
        start = start + height * width
    return torch.stack(parts).sum(0)


def _sample(
    value: Tensor,
    start: int,
    size: tuple[int, int],
    pixels: tuple[Tensor, Tensor],
    weights: Tensor,
) -> Tensor:
    """One level's weighted samples.

    Args:
        value: (N, S, M, D).
        start: the level's first row in S.
        size: (H, W) of the level.
        pixels: x and y, (N, Q, M, P), in pixels; 0 is the middle of the first.
        weights: (N, Q, M, P).

    Returns:
        (N, Q, M * D).
    """
    batch, length, heads, _ = value.shape
    height, width = size
    x, y = (at.unsqueeze(-1) for at in pixels)
    column, row = (torch.cat([at.floor(), at.floor() + 1], -1) for at in (x, y))
    across, down = 1 - (x - column).abs(), 1 - (y - row).abs()
    column, across = column.unsqueeze(-2), across.unsqueeze(-2)
    row, down = row.unsqueeze(-1), down.unsqueeze(-1)
    # False for what is not finite, too.
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)  # (N, Q, M, P, 2, 2)
    place = torch.where(inside, row * width + column, 0.0).long() + start
    share = torch.where(inside, across * down * weights[..., None, None], 0.0)
    # One gather of whole rows of (N * S * M, D): as a copy of memory, no element has an index of its own.
    image, head = (torch.arange(n, device=value.device) for n in (batch, heads))
    place = (image[:, None, None, None, None, None] * length + place) * heads
    place = place + head[:, None, None, None]
    corners = value.flatten(0, 2).index_select(0, place.flatten()).unflatten(0, place.shape)
    return (share.flatten(3).unsqueeze(3) @ corners.flatten(3, 5)).flatten(2)
