"""Multi-scale deformable attention: weighted sums of bilinear samples of several levels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .ms_deform_attn_dispatch import check, check_fused
from .ms_deform_attn_reference import ms_deform_attn_fused_reference
from .registry import flat, is_autocast, ops


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention, by the compiled operator `torch.ops.comer_d2`.

    Under autocast the value takes autocast's type; locations and weights are float32.

    Args:
        value: (N, S, M, D), float64, float32, float16 or bfloat16: the levels one after the other,
            each row by row; S = sum of H * W.
        spatial_shapes: (H, W) of each of the L levels, Python ints.
        sampling_locations: (N, Q, M, L, P, 2) as (x, y), in value's dtype or, beside a half type,
            float32; [0, 1] spans the level edge to edge. What lies outside reads zeros; a sample at a
            non-finite location contributes nothing and has no gradient.
        attention_weights: (N, Q, M, L, P), in the dtype of the locations.

    Returns:
        (N, Q, M * D) in value's dtype; half types are accumulated in float32.

    Raises:
        ValueError: a shape, dtype or device that does not fit; it names the argument.

    Source: Eq. 3 of arXiv 2010.04159; used as in Sec. 3.3 of arXiv 2403.07392.
    """
    if not is_autocast(value):
        check(value, spatial_shapes, sampling_locations, attention_weights)
    return ops.ms_deform_attn(value, flat(spatial_shapes), sampling_locations, attention_weights)


def ms_deform_attn_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    projected: Tensor,
    reference_points: Tensor,
) -> Tensor:
    """Deformable attention from the raw output of one linear layer.

    The same, to rounding, as `ms_deform_attn` with the locations reference + offset / (W, H) and
    the softmax of the logits over the L * P samples of a head, neither of which is stored.

    Args:
        value: (N, S, M, D), as of `ms_deform_attn`.
        spatial_shapes: (H, W) of each of the L levels, Python ints.
        projected: (N, Q, 3 * M * L * P), in value's dtype or, beside a half type, float32: first the
            offsets, (M, L, P, 2) as (x, y) in pixels of their level, then the logits, (M, L, P).
        reference_points: (N or 1, Q, L or 1, 2) as (x, y) in [0, 1].

    Returns:
        (N, Q, M * D) in value's dtype.

    Raises:
        ValueError: a shape, dtype or device that does not fit; it names the argument.
    """
    if reference_points.requires_grad and torch.is_grad_enabled():
        # The compiled operator takes them for constants, which they are in ViT-CoMer.
        return ms_deform_attn_fused_reference(
            value, spatial_shapes, projected, reference_points, attention=ms_deform_attn
        )
    if not is_autocast(value):
        check_fused(value, spatial_shapes, projected, reference_points)
    return ops.ms_deform_attn_fused(value, flat(spatial_shapes), projected, reference_points)


def ms_deform_attn_from_tensors(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int | None = None,
) -> Tensor:
    """The call of Deformable DETR's operator, for code that was written against it.

    Waits for the device, to read the level sizes: call `ms_deform_attn` in new code.

    Args:
        value: as of `ms_deform_attn`.
        sampling_locations: as of `ms_deform_attn`.
        attention_weights: as of `ms_deform_attn`.
        spatial_shapes: (L, 2) integers, (H, W) of each level.
        level_start_index: (L,) integers, the first pixel of each level.
        im2col_step: accepted for the signature's sake; there is no such restriction here.

    Returns:
        (N, Q, M * D).

    Raises:
        ValueError: as of `ms_deform_attn`, or levels that do not follow each other.
    """
    shapes = [(height, width) for height, width in spatial_shapes.tolist()]
    starts = [0]
    for height, width in shapes:
        starts.append(starts[-1] + height * width)
    if level_start_index.tolist() != starts[:-1]:
        raise ValueError(
            f"level_start_index must be {starts[:-1]} for spatial_shapes {shapes}, got "
            f"{level_start_index.tolist()}"
        )
    return ms_deform_attn(value, shapes, sampling_locations, attention_weights)
