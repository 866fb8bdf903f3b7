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
    batch, _, heads, head_dim = value.shape
    height, width = size
    rows = value.transpose(1, 2).flatten(0, 1)  # (N * M, S, D)
    x, y, weights = (t.transpose(1, 2).flatten(0, 1) for t in (*pixels, weights))  # (N * M, Q, P)
    left, top = x.floor(), y.floor()
    total = None
    for right in (0, 1):
        for below in (0, 1):
            column, row = left + right, top + below
            share = (1 - (x - column).abs()) * (1 - (y - row).abs())
            # False for what is not finite, too.
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            place = torch.where(inside, row * width + column, 0.0).long() + start
            share = torch.where(inside, share * weights, 0.0)
            index = place.flatten(1).unsqueeze(-1).expand(-1, -1, head_dim)
            corner = rows.gather(1, index).unflatten(1, x.shape[1:])
            part = (corner * share.unsqueeze(-1)).sum(2)
            total = part if total is None else total + part
    assert total is not None
    return total.unflatten(0, (batch, heads)).transpose(1, 2).flatten(2)
