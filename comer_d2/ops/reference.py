"""The meaning of multi-scale deformable attention, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def ms_deform_attn_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention by bilinear `grid_sample`, one call per level.

    Half types are computed in float32: a bfloat16 location on a 128-wide level is off by up to half
    a pixel, and `grid_sample` on the CPU returns NaN for some half inputs.

    Args:
        value: (N, S, M, D), the levels one after the other, each row by row; S = sum of H * W.
        spatial_shapes: (H, W) of each of the L levels, Python ints.
        sampling_locations: (N, Q, M, L, P, 2) as (x, y); [0, 1] spans the level edge to edge.
            What lies outside reads zeros; a non-finite location contributes nothing.
        attention_weights: (N, Q, M, L, P).

    Returns:
        (N, Q, M * D), in value's dtype.

    Source: Eq. 3 of arXiv 2010.04159.
    """
    batch, _, heads, head_dim = value.shape
    queries, _, levels, points = attention_weights.shape[1:]
    dtype = torch.float64 if value.dtype == torch.float64 else torch.float32
    # Beyond [-1, 2] every sample is outside even a level of one pixel, so the clamp changes no
    # result; it keeps huge locations out of grid_sample's integer arithmetic.
    locations = sampling_locations.to(dtype).nan_to_num(nan=-1.0).clamp(-1.0, 2.0)
    weights = attention_weights.to(dtype)
    result = value.new_zeros(batch, queries, heads * head_dim, dtype=dtype)
    if result.numel() == 0 or levels * points == 0:
        # Keeps the graph: empty inputs have (empty or zero) gradients, too.
        unused = value.sum() * 0 + sampling_locations.sum() * 0 + attention_weights.sum() * 0
        return (result + unused).to(value.dtype)
    maps = value.to(dtype).split([h * w for h, w in spatial_shapes], dim=1)
    for level, (height, width) in enumerate(spatial_shapes):
        if height * width == 0:
            continue
        image = maps[level].permute(0, 2, 3, 1).reshape(batch * heads, head_dim, height, width)
        grid = locations[:, :, :, level].transpose(1, 2).flatten(0, 1) * 2 - 1
        sampled = F.grid_sample(
            image, grid, mode="bilinear", padding_mode="zeros", align_corners=False
        )
        level_weights = weights[:, :, :, level].permute(0, 2, 1, 3)
        level_weights = level_weights.reshape(batch * heads, 1, queries, points)
        level_sum = (sampled * level_weights).sum(-1)
        result = result + level_sum.view(batch, heads * head_dim, queries).transpose(1, 2)
    return result.to(value.dtype)


def ms_deform_attn_fused_reference(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    projected: Tensor,
    reference_points: Tensor,
    attention: Callable[..., Tensor] = ms_deform_attn_reference,
) -> Tensor:
    """Deformable attention from raw offsets and logits, in plain PyTorch.

    Args:
        value: (N, S, M, D).
        spatial_shapes: (H, W) of each of the L levels, Python ints.
        projected: (N, Q, 3 * M * L * P): offsets (M, L, P, 2) as (x, y) in pixels, then logits
            (M, L, P).
        reference_points: (N or 1, Q, L or 1, 2) as (x, y) in [0, 1].
        attention: what is called with locations and weights.

    Returns:
        (N, Q, M * D), in value's dtype.
    """
    batch, queries, size = projected.shape
    heads, levels = value.shape[2], len(spatial_shapes)
    points = size // (3 * heads * levels) if heads * levels else 0
    dtype = torch.float64 if projected.dtype == torch.float64 else torch.float32
    samples = heads * levels * points
    offsets, logits = projected.to(dtype).split([2 * samples, samples], dim=-1)
    offsets = offsets.reshape(batch, queries, heads, levels, points, 2)
    logits = logits.reshape(batch, queries, heads, levels * points)
    sizes = offsets.new_tensor([(width, height) for height, width in spatial_shapes])
    locations = reference_points.to(dtype)[:, :, None, :, None] + offsets / sizes.view(
        1, 1, 1, levels, 1, 2
    )
    weights = logits.softmax(-1).view(batch, queries, heads, levels, points)
    return attention(value, spatial_shapes, locations, weights)
