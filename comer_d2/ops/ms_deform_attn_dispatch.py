"""Deformable attention in PyTorch's dispatcher, as far as it is Python's part."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from .ms_deform_attn_reference import (
    ms_deform_attn_fused_reference,
    ms_deform_attn_fused_reference_backward,
    ms_deform_attn_reference,
    ms_deform_attn_reference_backward,
)
from .registry import (
    check_beside,
    check_levels,
    define,
    ops,
    pairs,
    register_autocast,
    register_autograd,
    register_fake,
    register_fallback,
)

define(
    {
        "ms_deform_attn": "(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
        "Tensor attention_weights) -> Tensor",
        "ms_deform_attn_backward": "(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
        "Tensor sampling_locations, Tensor attention_weights, bool deterministic=False) "
        "-> (Tensor, Tensor, Tensor)",
        "ms_deform_attn_fused": "(Tensor value, SymInt[] spatial_shapes, Tensor projected, "
        "Tensor reference_points) -> Tensor",
        "ms_deform_attn_fused_backward": "(Tensor grad_output, Tensor value, "
        "SymInt[] spatial_shapes, Tensor projected, Tensor reference_points, "
        "bool deterministic=False) -> (Tensor, Tensor)",
    }
)


# ------------------------------------------------------------------------------------------------
# Checks


def _check_value(value: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> None:
    if value.dim() != 4:
        raise ValueError(f"value must have shape (N, S, M, D), got {tuple(value.shape)}")
    check_levels("value", value, spatial_shapes)


def check(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    """Raises ValueError where the arguments of `ms_deform_attn` do not fit together."""
    _check_value(value, spatial_shapes)
    shape, levels = tuple(sampling_locations.shape), len(spatial_shapes)
    if sampling_locations.dim() != 6:
        raise ValueError(f"sampling_locations must have shape (N, Q, M, L, P, 2), got {shape}")
    check_beside("sampling_locations", sampling_locations, "value", value)
    check_beside("attention_weights", attention_weights, "value", value)
    if attention_weights.dtype != sampling_locations.dtype:
        raise ValueError(
            "attention_weights must have the dtype of sampling_locations "
            f"({sampling_locations.dtype}), got {attention_weights.dtype}"
        )
    if (
        shape[0] != value.shape[0]
        or shape[2] != value.shape[2]
        or shape[3] != levels
        or shape[5] != 2
    ):
        raise ValueError(
            "sampling_locations must have shape (N, Q, M, L, P, 2) with N, M of value "
            f"{tuple(value.shape)} and L = {levels} levels, got {shape}"
        )
    if tuple(attention_weights.shape) != shape[:-1]:
        raise ValueError(
            f"attention_weights must have the shape of sampling_locations {shape} without the "
            f"last 2, got {tuple(attention_weights.shape)}"
        )


def check_fused(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    projected: Tensor,
    reference_points: Tensor,
) -> None:
    """Raises ValueError where the arguments of `ms_deform_attn_fused` do not fit together."""
    _check_value(value, spatial_shapes)
    levels = len(spatial_shapes)
    per_point = 3 * value.shape[2] * levels
    if (
        projected.dim() != 3
        or projected.shape[0] != value.shape[0]
        or (projected.shape[2] % per_point if per_point else projected.shape[2])
    ):
        raise ValueError(
            "projected must have shape (N, Q, 3 * M * L * P) with N, M of value "
            f"{tuple(value.shape)} and L = {levels} levels, got {tuple(projected.shape)}"
        )
    check_beside("projected", projected, "value", value)
    if reference_points.device != value.device:
        raise ValueError(
            f"reference_points must be on the device of value, {value.device}, got "
            f"{reference_points.device}"
        )
    if (
        reference_points.dim() != 4
        or reference_points.shape[0] not in (1, value.shape[0])
        or reference_points.shape[1] != projected.shape[1]
        or reference_points.shape[2] not in (1, levels)
        or reference_points.shape[3] != 2
    ):
        raise ValueError(
            "reference_points must have shape (N or 1, Q, L or 1, 2) with N, Q of projected "
            f"{tuple(projected.shape)} and L = {levels} levels, got "
            f"{tuple(reference_points.shape)}"
        )


# ------------------------------------------------------------------------------------------------
# The kernel of every device that has no compiled one


def _fall_back(value, flat_shapes, locations, weights) -> Tensor:
    check(value, pairs(flat_shapes), locations, weights)
    return ms_deform_attn_reference(value, pairs(flat_shapes), locations, weights)


def _fall_back_backward(
    grad_output, value, flat_shapes, locations, weights, deterministic=False
) -> tuple[Tensor, Tensor, Tensor]:
    return ms_deform_attn_reference_backward(
        grad_output, value, pairs(flat_shapes), locations, weights
    )


def _fall_back_fused(value, flat_shapes, projected, reference_points) -> Tensor:
    check_fused(value, pairs(flat_shapes), projected, reference_points)
    return ms_deform_attn_fused_reference(value, pairs(flat_shapes), projected, reference_points)


def _fall_back_fused_backward(
    grad_output, value, flat_shapes, projected, reference_points, deterministic=False
) -> tuple[Tensor, Tensor]:
    return ms_deform_attn_fused_reference_backward(
        grad_output, value, pairs(flat_shapes), projected, reference_points
    )


register_fallback("ms_deform_attn", _fall_back)
register_fallback("ms_deform_attn_backward", _fall_back_backward)
register_fallback("ms_deform_attn_fused", _fall_back_fused)
register_fallback("ms_deform_attn_fused_backward", _fall_back_fused_backward)


# ------------------------------------------------------------------------------------------------
# Fake kernels, for torch.compile and export


@register_fake("ms_deform_attn")
def _fake(value: Tensor, flat_shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    check(value, pairs(flat_shapes), locations, weights)
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@register_fake("ms_deform_attn_backward")
def _fake_backward(
    grad_output, value, flat_shapes, locations, weights, deterministic=False
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (value, locations, weights))


@register_fake("ms_deform_attn_fused")
def _fake_fused(
    value: Tensor, flat_shapes: Sequence[int], projected: Tensor, reference_points: Tensor
) -> Tensor:
    check_fused(value, pairs(flat_shapes), projected, reference_points)
    return value.new_empty(value.shape[0], projected.shape[1], value.shape[2] * value.shape[3])


@register_fake("ms_deform_attn_fused_backward")
def _fake_fused_backward(
    grad_output, value, flat_shapes, projected, reference_points, deterministic=False
) -> tuple[Tensor, Tensor]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (value, projected))


# ------------------------------------------------------------------------------------------------
# Autograd


def _save(ctx, value, flat_shapes, first, second) -> None:
    ctx.flat_shapes = flat_shapes
    ctx.save_for_backward(value, first, second)


def _backward(ctx, grad_output: Tensor):
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = ops.ms_deform_attn_backward(
        grad_output,
        value,
        ctx.flat_shapes,
        locations,
        weights,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad_value, None, grad_locations, grad_weights


def _fused_backward(ctx, grad_output: Tensor):
    value, projected, reference_points = ctx.saved_tensors
    grad_value, grad_projected = ops.ms_deform_attn_fused_backward(
        grad_output,
        value,
        ctx.flat_shapes,
        projected,
        reference_points,
        torch.are_deterministic_algorithms_enabled(),
    )
    return grad_value, None, grad_projected, None


register_autograd("ms_deform_attn", _backward, _save, "ms_deform_attn_reference")
register_autograd("ms_deform_attn_fused", _fused_backward, _save, "ms_deform_attn_fused_reference")


# ------------------------------------------------------------------------------------------------
# Autocast: the value in autocast's type. Geometry stays in float32, because a half location is
# coarse; what is in the half type already gains nothing from being widened.


def _cast(dtype, value: Tensor, flat_shapes, locations: Tensor, weights: Tensor) -> tuple:
    if value.dtype == torch.float64:
        return value, flat_shapes, locations, weights
    if not locations.dtype == weights.dtype == dtype:
        locations, weights = locations.float(), weights.float()
    return value.to(dtype), flat_shapes, locations, weights


def _cast_fused(dtype, value: Tensor, flat_shapes, projected: Tensor, reference: Tensor) -> tuple:
    if value.dtype == torch.float64:
        return value, flat_shapes, projected, reference
    projected = projected if projected.dtype == dtype else projected.float()
    return value.to(dtype), flat_shapes, projected, reference


register_autocast("ms_deform_attn", _cast)
register_autocast("ms_deform_attn_fused", _cast_fused)


# ------------------------------------------------------------------------------------------------
# FLOPs


def _flops(samples_times_channels: int, passes: int) -> int:
    # Four corners, a multiplication and an addition each.
    return 8 * samples_times_channels * passes


@register_flop_formula(ops.ms_deform_attn)
def _forward_flops(value, shapes, locations, weights, *_, out_shape=None, **__) -> int:
    batch, queries, heads, levels, points = weights
    return _flops(batch * queries * heads * levels * points * value[3], 1)


@register_flop_formula(ops.ms_deform_attn_backward)
def _backward_flops(grad, value, shapes, locations, weights, *_, out_shape=None, **__) -> int:
    return 2 * _forward_flops(value, shapes, locations, weights)


@register_flop_formula(ops.ms_deform_attn_fused)
def _fused_flops(value, shapes, projected, reference, *_, out_shape=None, **__) -> int:
    # projected holds three numbers a sample
    return _flops(projected[0] * projected[1] * (projected[2] // 3) * value[3], 1)


@register_flop_formula(ops.ms_deform_attn_fused_backward)
def _fused_backward_flops(
    grad, value, shapes, projected, reference, *_, out_shape=None, **__
) -> int:
    return 2 * _fused_flops(value, shapes, projected, reference)
