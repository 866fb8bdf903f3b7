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
    dtype = _accumulation_dtype(value)
    result = value.new_zeros(batch, queries, heads * head_dim, dtype=dtype)
    if result.numel() == 0 or levels * points * value.shape[1] == 0:
        # Keeps the graph: empty inputs have (empty or zero) gradients, too.
        unused = value.sum() * 0 + sampling_locations.sum() * 0 + attention_weights.sum() * 0
        return (result + unused).to(value.dtype)
    maps = value.to(dtype).split([h * w for h, w in spatial_shapes], dim=1)
    for level, (height, width) in enumerate(spatial_shapes):
        if height * width == 0:
            continue
        sampled = F.grid_sample(
            _image(maps[level], height, width),
            _grid(sampling_locations[:, :, :, level].to(dtype), height, width),
            mode="bilinear",
            padding_mode="zeros",
            align_corners=False,
        )
        level_weights = _by_head(attention_weights[:, :, :, level].to(dtype)).unsqueeze(1)
        level_sum = (sampled * level_weights).sum(-1)
        result = result + level_sum.view(batch, heads * head_dim, queries).transpose(1, 2)
    return result.to(value.dtype)


def ms_deform_attn_reference_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """The derivative of `ms_deform_attn_reference`, for a place where autograd is not at work.

    Args:
        grad_output: (N, Q, M * D).
        value: as of the forward.
        spatial_shapes: as of the forward.
        sampling_locations: as of the forward.
        attention_weights: as of the forward.

    Returns:
        Gradients of value, sampling_locations and attention_weights, in their shapes and dtypes.
    """
    batch, _, heads, head_dim = value.shape
    queries, points = attention_weights.shape[1], attention_weights.shape[4]
    dtype = _accumulation_dtype(value)
    grads = [
        torch.zeros_like(tensor, dtype=dtype, memory_format=torch.contiguous_format)
        for tensor in (value, sampling_locations, attention_weights)
    ]
    grad_value, grad_locations, grad_weights = grads
    inputs = (value, sampling_locations, attention_weights)
    sizes = [h * w for h, w in spatial_shapes]
    grad = grad_output.to(dtype).reshape(batch, queries, heads, head_dim)
    grad = grad.permute(0, 2, 3, 1).reshape(batch * heads, head_dim, queries, 1)
    if grad.numel() and points:
        maps, grad_maps = value.to(dtype).split(sizes, dim=1), grad_value.split(sizes, dim=1)
        for level, (height, width) in enumerate(spatial_shapes):
            if height * width == 0:
                continue
            image = _image(maps[level], height, width)
            locations = sampling_locations[:, :, :, level].to(dtype)
            level_weights = _by_head(attention_weights[:, :, :, level].to(dtype)).unsqueeze(1)
            grid = _grid(locations, height, width)
            sampled = F.grid_sample(image, grid, padding_mode="zeros", align_corners=False)
            grad_image, grad_grid = torch.ops.aten.grid_sampler_2d_backward(
                grad * level_weights, image, grid, 0, 0, False, (True, True)
            )
            unflatten = (batch, heads, queries, points)
            grad_maps[level].copy_(grad_image.view(batch, heads, head_dim, -1).permute(0, 3, 1, 2))
            level_grad = (grad * sampled).sum(1).view(unflatten).transpose(1, 2)
            grad_weights[:, :, :, level] = level_grad
            level_grad = 2 * grad_grid.view(*unflatten, 2).transpose(1, 2)
            moves = _touches(locations, height, width)
            grad_locations[:, :, :, level] = torch.where(moves, level_grad, 0.0)
    first, second, third = (grad.to(tensor.dtype) for grad, tensor in zip(grads, inputs))
    return first, second, third


def _accumulation_dtype(value: Tensor) -> torch.dtype:
    return torch.float64 if value.dtype == torch.float64 else torch.float32


def _image(level: Tensor, height: int, width: int) -> Tensor:
    """(N, H * W, M, D) as the (N * M, D, H, W) of `grid_sample`."""
    batch, _, heads, head_dim = level.shape
    return level.permute(0, 2, 3, 1).reshape(batch * heads, head_dim, height, width)


def _by_head(tensor: Tensor) -> Tensor:
    """(N, Q, M, P, ...) as (N * M, Q, P, ...)."""
    return tensor.transpose(1, 2).flatten(0, 1)


def _touches(locations: Tensor, height: int, width: int) -> Tensor:
    """Which samples (..., 2) have a pixel of the level at one of their corners: (..., 1)."""
    size = locations.new_tensor([width, height])
    pixels = locations * size - 0.5
    return ((pixels >= -1) & (pixels < size)).all(-1, keepdim=True)


def _grid(locations: Tensor, height: int, width: int) -> Tensor:
    """(N, Q, M, P, 2) in [0, 1] as the (N * M, Q, P, 2) in [-1, 1] of `grid_sample`."""
    # -1 is outside a level of any size. That changes no result, keeps huge locations out of
    # grid_sample's integer arithmetic, and cuts the gradient: zero, whatever the attention weight.
    inside = torch.where(_touches(locations, height, width), locations, -1.0)
    return _by_head(inside) * 2 - 1


def locations_and_weights(
    spatial_shapes: Sequence[tuple[int, int]],
    projected: Tensor,
    reference_points: Tensor,
    heads: int,
) -> tuple[Tensor, Tensor]:
    """Sampling locations and attention weights from raw offsets and logits, in float32 or float64.

    Args:
        spatial_shapes: as of `ms_deform_attn_fused_reference`.
        projected: as of `ms_deform_attn_fused_reference`.
        reference_points: as of `ms_deform_attn_fused_reference`.
        heads: M.

    Returns:
        (N, Q, M, L, P, 2) locations and (N, Q, M, L, P) weights.
    """
    batch, queries, size = projected.shape
    levels = len(spatial_shapes)
    points = size // (3 * heads * levels) if heads * levels else 0
    samples = heads * levels * points
    dtype = _accumulation_dtype(projected)
    offsets, logits = projected.to(dtype).split([2 * samples, samples], dim=-1)
    offsets = offsets.reshape(batch, queries, heads, levels, points, 2)
    reference = reference_points.to(dtype)[:, :, None, :, None]
    locations = reference + offsets / _level_sizes(spatial_shapes, offsets)
    weights = logits.reshape(batch, queries, heads, levels * points).softmax(-1)
    return locations, weights.view(batch, queries, heads, levels, points)


def _level_sizes(spatial_shapes: Sequence[tuple[int, int]], like: Tensor) -> Tensor:
    """(1, 1, 1, L, 1, 2): the (width, height) that divide offsets."""
    sizes = like.new_tensor([(width, height) for height, width in spatial_shapes])
    # A level without pixels reads nothing; the gradient of its offsets is 0, not 0 / 0.
    return sizes.clamp(min=1).view(1, 1, 1, len(spatial_shapes), 1, 2)


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
    locations, weights = locations_and_weights(
        spatial_shapes, projected, reference_points, value.shape[2]
    )
    if value.dtype == torch.float64:
        locations, weights = locations.double(), weights.double()
    return attention(value, spatial_shapes, locations, weights)


def ms_deform_attn_fused_reference_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    projected: Tensor,
    reference_points: Tensor,
) -> tuple[Tensor, Tensor]:
    """The derivative of `ms_deform_attn_fused_reference`, where autograd is not at work.

    Args:
        grad_output: (N, Q, M * D).
        value: as of the forward.
        spatial_shapes: as of the forward.
        projected: as of the forward.
        reference_points: as of the forward.

    Returns:
        Gradients of value and projected, in their shapes and dtypes.
    """
    locations, weights = locations_and_weights(
        spatial_shapes, projected, reference_points, value.shape[2]
    )
    grad_value, grad_locations, grad_weights = ms_deform_attn_reference_backward(
        grad_output, value, spatial_shapes, locations, weights
    )
    grad_offsets = grad_locations / _level_sizes(spatial_shapes, grad_locations)
    mean = (weights * grad_weights).sum((-2, -1), keepdim=True)
    grad_logits = weights * (grad_weights - mean)
    grad_projected = torch.cat([grad_offsets.flatten(2), grad_logits.flatten(2)], dim=-1)
    return grad_value, grad_projected.to(projected.dtype)
