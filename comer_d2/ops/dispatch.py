"""Deformable attention in PyTorch's dispatcher, as far as it is Python's part.

The compiled libraries hold schemas and kernels. What LibTorch's stable ABI leaves to Python is
here: argument checks that raise ValueError, fake kernels, autograd, autocast, vmap, FLOP formulas, and
the PyTorch code as the kernel of every device that has no compiled one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import library
from .reference import (
    ms_deform_attn_fused_reference,
    ms_deform_attn_fused_reference_backward,
    ms_deform_attn_reference,
    ms_deform_attn_reference_backward,
)

# As csrc/register.cpp has them.
_SCHEMAS = {
    "ms_deform_attn": "(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
    "Tensor attention_weights) -> Tensor",
    "ms_deform_attn_backward": "(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
    "Tensor sampling_locations, Tensor attention_weights, bool deterministic=False) "
    "-> (Tensor, Tensor, Tensor)",
    "ms_deform_attn_fused": "(Tensor value, SymInt[] spatial_shapes, Tensor projected, "
    "Tensor reference_points) -> Tensor",
    "ms_deform_attn_fused_backward": "(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
    "Tensor projected, Tensor reference_points, bool deterministic=False) -> (Tensor, Tensor)",
}
_NAMESPACE = "comer_d2_python" if library.is_stale else "comer_d2"
_registry = torch.library.Library(_NAMESPACE, "FRAGMENT")
ops = getattr(torch.ops, _NAMESPACE)
for _name, _schema in _SCHEMAS.items():
    if not hasattr(ops, _name):
        _registry.define(_name + _schema)

_VALUE_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_HALF_TYPES = (torch.float16, torch.bfloat16)


def pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    """[H0, W0, H1, W1, ...] as [(H0, W0), (H1, W1), ...]."""
    return list(zip(flat[::2], flat[1::2]))


# ------------------------------------------------------------------------------------------------
# Checks, the same as the compiled kernels', for devices and tracers that do not come there


def _check_value(value: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> None:
    if value.dim() != 4:
        raise ValueError(f"value must have shape (N, S, M, D), got {tuple(value.shape)}")
    if value.dtype not in _VALUE_TYPES:
        raise ValueError(f"value must be float64, float32, float16 or bfloat16, got {value.dtype}")
    covered = sum(height * width for height, width in spatial_shapes)
    if covered != value.shape[1]:
        raise ValueError(
            f"spatial_shapes {list(spatial_shapes)} cover {covered} pixels, but value of shape "
            f"{tuple(value.shape)} has {value.shape[1]}"
        )


def _check_beside(name: str, tensor: Tensor, value: Tensor) -> None:
    if tensor.device != value.device:
        raise ValueError(
            f"{name} must be on the device of value, {value.device}, got {tensor.device}"
        )
    beside_half = tensor.dtype == torch.float32 and value.dtype in _HALF_TYPES
    if tensor.dtype != value.dtype and not beside_half:
        raise ValueError(
            f"{name} must have value's dtype ({value.dtype}) or float32 beside a half type, "
            f"got {tensor.dtype}"
        )


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
    _check_beside("sampling_locations", sampling_locations, value)
    _check_beside("attention_weights", attention_weights, value)
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
    _check_beside("projected", projected, value)
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


def _fall_back(value: Tensor, flat_shapes: Sequence[int], first: Tensor, second: Tensor, *, fused):
    (check_fused if fused else check)(value, pairs(flat_shapes), first, second)
    library.warn_of_fallback(value.device.type)
    function = ms_deform_attn_fused_reference if fused else ms_deform_attn_reference
    return function(value, pairs(flat_shapes), first, second)


def _fall_back_backward(
    grad_output, value, flat_shapes, locations, weights, deterministic=False
) -> tuple[Tensor, Tensor, Tensor]:
    return ms_deform_attn_reference_backward(
        grad_output, value, pairs(flat_shapes), locations, weights
    )


def _fall_back_fused_backward(
    grad_output, value, flat_shapes, projected, reference_points, deterministic=False
) -> tuple[Tensor, Tensor]:
    return ms_deform_attn_fused_reference_backward(
        grad_output, value, pairs(flat_shapes), projected, reference_points
    )


for _name, _kernel in (
    ("ms_deform_attn", functools.partial(_fall_back, fused=False)),
    ("ms_deform_attn_backward", _fall_back_backward),
    ("ms_deform_attn_fused", functools.partial(_fall_back, fused=True)),
    ("ms_deform_attn_fused_backward", _fall_back_fused_backward),
):
    _registry.impl(_name, _kernel, "CompositeExplicitAutograd")


# ------------------------------------------------------------------------------------------------
# Fake kernels, for torch.compile and export


@torch.library.register_fake(f"{_NAMESPACE}::ms_deform_attn")
def _fake(value: Tensor, flat_shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    check(value, pairs(flat_shapes), locations, weights)
    return value.new_empty(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3])


@torch.library.register_fake(f"{_NAMESPACE}::ms_deform_attn_backward")
def _fake_backward(
    grad_output, value, flat_shapes, locations, weights, deterministic=False
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (value, locations, weights))


@torch.library.register_fake(f"{_NAMESPACE}::ms_deform_attn_fused")
def _fake_fused(
    value: Tensor, flat_shapes: Sequence[int], projected: Tensor, reference_points: Tensor
) -> Tensor:
    check_fused(value, pairs(flat_shapes), projected, reference_points)
    return value.new_empty(value.shape[0], projected.shape[1], value.shape[2] * value.shape[3])


@torch.library.register_fake(f"{_NAMESPACE}::ms_deform_attn_fused_backward")
def _fake_fused_backward(
    grad_output, value, flat_shapes, projected, reference_points, deterministic=False
) -> tuple[Tensor, Tensor]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (value, projected))


# ------------------------------------------------------------------------------------------------
# Autograd


def _save(ctx, inputs, output) -> None:
    value, ctx.flat_shapes, first, second = inputs
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


def _save_nothing(ctx, inputs, output) -> None:
    pass


def _refuse_double_backward(ctx, *grads):
    raise NotImplementedError(
        "deformable attention has no second derivative here; ms_deform_attn_reference has one"
    )


for _name, _function in (("ms_deform_attn", _backward), ("ms_deform_attn_fused", _fused_backward)):
    torch.library.register_autograd(f"{_NAMESPACE}::{_name}", _function, setup_context=_save)
    # Registered although it only raises: an unregistered backward gives wrong second derivatives
    # with no more than a warning.
    torch.library.register_autograd(
        f"{_NAMESPACE}::{_name}_backward", _refuse_double_backward, setup_context=_save_nothing
    )


# ------------------------------------------------------------------------------------------------
# Autocast: the value in autocast's type. Geometry stays in float32, because a half location is
# coarse; what is in the half type already gains nothing from being widened.


def _autocast(value: Tensor, flat_shapes, first: Tensor, second: Tensor, *, name, device_type):
    if value.dtype != torch.float64:
        value = value.to(torch.get_autocast_dtype(device_type))
        fused = name == "ms_deform_attn_fused"
        if first.dtype != value.dtype or (second.dtype != value.dtype and not fused):
            first, second = first.float(), second.float()
    with torch.autocast(device_type, enabled=False):
        return getattr(ops, name)(value, flat_shapes, first, second)


for _name in ("ms_deform_attn", "ms_deform_attn_fused"):
    for _device_type, _key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):
        _registry.impl(
            _name, functools.partial(_autocast, name=_name, device_type=_device_type), _key
        )


# ------------------------------------------------------------------------------------------------
# vmap and FLOPs


def _refuse_vmap(info, in_dims, *args):
    raise NotImplementedError(
        "deformable attention is not mapped by vmap: put the mapped dimension into the batch "
        "dimension of the arguments"
    )


for _name in _SCHEMAS:
    torch.library.register_vmap(f"{_NAMESPACE}::{_name}", _refuse_vmap)


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
