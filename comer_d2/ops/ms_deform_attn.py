"""Multi-scale deformable attention: the public function and its place in PyTorch's dispatcher.

The compiled libraries hold schemas and kernels (CPU in `comer_d2._C`, CUDA in `comer_d2._C_cuda`).
What the stable ABI leaves to Python is here: the fake kernel, autograd and autocast. Where a library
is missing, `reference.py` computes the same, slower, with one warning that says how to build.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from .reference import ms_deform_attn_reference

# Of schemas and their meaning; csrc/ms_deform_attn.h has the same number.
_OP_VERSION = 1
_HOW_TO_BUILD = (
    "build it with `pip install --no-build-isolation -e .` in the repository of comer_d2"
)
_HALF_TYPES = (torch.float16, torch.bfloat16)


class OperatorWarning(UserWarning):
    """The compiled operator is not there, and the slower PyTorch code runs instead."""


def _load(name: str) -> tuple[object | None, str | None]:
    """The library `comer_d2.<name>` and, where it is not usable, why."""
    try:
        library = importlib.import_module(f"comer_d2.{name}")
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"comer_d2.{name} did not load: {error}"
    version = getattr(library, "op_version", None)
    if version != _OP_VERSION:
        return None, f"comer_d2.{name} is of version {version}, wanted {_OP_VERSION}: rebuild it"
    return library, None


_cpu_library, _cpu_problem = _load("_C")
if _cpu_library is None:
    _cuda_library, _cuda_problem = None, _cpu_problem
else:
    _cuda_library, _cuda_problem = _load("_C_cuda")


def library_status() -> dict[str, str]:
    """For each device type, what computes the operator there, or why it is not compiled code.

    Returns:
        {"cpu": ..., "cuda": ...}; the CPU's names the instruction set in use.
    """
    return {
        "cpu": _cpu_problem or f"compiled, {cpu_capability()}",
        "cuda": _cuda_problem or "compiled",
    }


def cpu_capability() -> str | None:
    """The instruction set of the CPU kernels: "avx512", "avx2", "sse2", "baseline"; None without.

    The best one that the machine has, or the one that COMER_D2_CPU_CAPABILITY names.
    """
    return None if _cpu_library is None else _cpu_library.cpu_capability()


_warned: set[str] = set()


def _warn_of_fallback(device_type: str) -> None:
    if device_type in _warned:
        return
    _warned.add(device_type)
    problem = _cuda_problem if device_type == "cuda" else _cpu_problem
    problem = problem or f"comer_d2 has no kernel for {device_type}"
    warnings.warn(
        f"multi-scale deformable attention runs as plain PyTorch, several times slower: {problem}; "
        + _HOW_TO_BUILD,
        OperatorWarning,
        stacklevel=3,
    )


# ------------------------------------------------------------------------------------------------
# Checks


def _check(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> None:
    if value.dim() != 4:
        raise ValueError(f"value must have shape (N, S, M, D), got {tuple(value.shape)}")
    if sampling_locations.dim() != 6:
        raise ValueError(
            "sampling_locations must have shape (N, Q, M, L, P, 2), got "
            f"{tuple(sampling_locations.shape)}"
        )
    batch, pixels, heads, _ = value.shape
    if not value.dtype.is_floating_point or value.dtype.itemsize == 1:
        raise ValueError(
            f"value must be float64, float32, float16 or bfloat16, got {value.dtype}"
        )
    for name, tensor in (
        ("sampling_locations", sampling_locations),
        ("attention_weights", attention_weights),
    ):
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
    if attention_weights.dtype != sampling_locations.dtype:
        raise ValueError(
            f"attention_weights must have the dtype of sampling_locations "
            f"({sampling_locations.dtype}), got {attention_weights.dtype}"
        )
    covered = sum(height * width for height, width in spatial_shapes)
    if covered != pixels:
        raise ValueError(
            f"spatial_shapes {list(spatial_shapes)} cover {covered} pixels, but value of shape "
            f"{tuple(value.shape)} has {pixels}"
        )
    expected = (batch, sampling_locations.shape[1], heads, len(spatial_shapes))
    if tuple(sampling_locations.shape[:4]) != expected or sampling_locations.shape[5] != 2:
        raise ValueError(
            "sampling_locations must have shape (N, Q, M, L, P, 2) with N, M of value "
            f"{tuple(value.shape)} and L = {len(spatial_shapes)} levels, got "
            f"{tuple(sampling_locations.shape)}"
        )
    if attention_weights.shape != sampling_locations.shape[:-1]:
        raise ValueError(
            "attention_weights must have the shape of sampling_locations "
            f"{tuple(sampling_locations.shape)} without the last 2, got "
            f"{tuple(attention_weights.shape)}"
        )


# ------------------------------------------------------------------------------------------------
# Dispatcher: schemas where the library is missing, then what is Python's in any case

_SCHEMAS = (
    "ms_deform_attn(Tensor value, SymInt[] spatial_shapes, Tensor sampling_locations, "
    "Tensor attention_weights) -> Tensor",
    "ms_deform_attn_backward(Tensor grad_output, Tensor value, SymInt[] spatial_shapes, "
    "Tensor sampling_locations, Tensor attention_weights) -> (Tensor, Tensor, Tensor)",
)
_registry = torch.library.Library("comer_d2", "FRAGMENT")
for _schema in _SCHEMAS:
    if not hasattr(torch.ops.comer_d2, _schema.split("(", 1)[0]):
        _registry.define(_schema)


def _pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    return list(zip(flat[::2], flat[1::2]))


def _reference_forward(
    value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    _check(value, _pairs(spatial_shapes), locations, weights)
    _warn_of_fallback(value.device.type)
    return ms_deform_attn_reference(value, _pairs(spatial_shapes), locations, weights)


def _reference_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.enable_grad():
        inputs = [tensor.detach().requires_grad_() for tensor in (value, locations, weights)]
        output = ms_deform_attn_reference(inputs[0], _pairs(spatial_shapes), *inputs[1:])
    return torch.autograd.grad(output, inputs, grad_output)


# The kernel of every device that has no compiled one.
_registry.impl("ms_deform_attn", _reference_forward, "CompositeExplicitAutograd")
_registry.impl("ms_deform_attn_backward", _reference_backward, "CompositeExplicitAutograd")


@torch.library.register_fake("comer_d2::ms_deform_attn")
def _fake(
    value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
) -> Tensor:
    _check(value, _pairs(spatial_shapes), locations, weights)
    batch, _, heads, head_dim = value.shape
    return value.new_empty(batch, locations.shape[1], heads * head_dim)


@torch.library.register_fake("comer_d2::ms_deform_attn_backward")
def _fake_backward(
    grad_output: Tensor,
    value: Tensor,
    spatial_shapes: Sequence[int],
    locations: Tensor,
    weights: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        value.new_empty(value.shape),
        locations.new_empty(locations.shape),
        weights.new_empty(weights.shape),
    )


def _save_for_backward(ctx, inputs, output) -> None:
    value, spatial_shapes, locations, weights = inputs
    ctx.spatial_shapes = spatial_shapes
    ctx.save_for_backward(value, locations, weights)


def _backward(ctx, grad_output: Tensor):
    value, locations, weights = ctx.saved_tensors
    grad_value, grad_locations, grad_weights = torch.ops.comer_d2.ms_deform_attn_backward(
        grad_output, value, ctx.spatial_shapes, locations, weights
    )
    return grad_value, None, grad_locations, grad_weights


def _refuse_double_backward(ctx, *grads):
    raise NotImplementedError(
        "multi-scale deformable attention has no second derivative; "
        "ms_deform_attn_reference has one"
    )


torch.library.register_autograd(
    "comer_d2::ms_deform_attn", _backward, setup_context=_save_for_backward
)
# Registered although it only raises: an unregistered backward gives wrong second derivatives with
# no more than a warning.
torch.library.register_autograd(
    "comer_d2::ms_deform_attn_backward",
    _refuse_double_backward,
    setup_context=lambda ctx, inputs, output: None,
)


@torch.library.register_vmap("comer_d2::ms_deform_attn")
def _refuse_vmap(info, in_dims, *args):
    raise NotImplementedError(
        "multi-scale deformable attention is not mapped by vmap: put the mapped dimension into "
        "the batch dimension of value, sampling_locations and attention_weights"
    )


def _autocast_for(device_type: str):
    def autocast(
        value: Tensor, spatial_shapes: Sequence[int], locations: Tensor, weights: Tensor
    ) -> Tensor:
        """The value in autocast's type; locations and weights in float32, whatever they were."""
        if value.dtype != torch.float64:
            value = value.to(torch.get_autocast_dtype(device_type))
            locations, weights = locations.float(), weights.float()
        with torch.autocast(device_type, enabled=False):
            return torch.ops.comer_d2.ms_deform_attn(value, spatial_shapes, locations, weights)

    return autocast


_registry.impl("ms_deform_attn", _autocast_for("cpu"), "AutocastCPU")
_registry.impl("ms_deform_attn", _autocast_for("cuda"), "AutocastCUDA")


# ------------------------------------------------------------------------------------------------
# Public


def ms_deform_attn(
    value: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    sampling_locations: Tensor,
    attention_weights: Tensor,
) -> Tensor:
    """Multi-scale deformable attention: weighted sums of bilinear samples of several levels.

    Args:
        value: (N, S, M, D), float64, float32, float16 or bfloat16: the levels one after the other,
            each row by row; S = sum of H * W.
        spatial_shapes: (H, W) of each of the L levels, Python ints.
        sampling_locations: (N, Q, M, L, P, 2) as (x, y), in value's dtype or float32; [0, 1] spans
            the level edge to edge. What lies outside reads zeros; a sample at a non-finite location
            contributes nothing and has no gradient.
        attention_weights: (N, Q, M, L, P), in the dtype of the locations.

    Returns:
        (N, Q, M * D) in value's dtype; half types are accumulated in float32.

    Raises:
        ValueError: a shape, dtype or device that does not fit, naming the argument.

    Source: Eq. 3 of arXiv 2010.04159; used as in Sec. 3.3 of arXiv 2403.07392.
    """
    if len(spatial_shapes) and not isinstance(spatial_shapes[0], (tuple, list)):
        spatial_shapes = [tuple(shape) for shape in spatial_shapes]
    if not torch.is_autocast_enabled(value.device.type):
        _check(value, spatial_shapes, sampling_locations, attention_weights)
    flat = [size for shape in spatial_shapes for size in shape]
    return torch.ops.comer_d2.ms_deform_attn(value, flat, sampling_locations, attention_weights)


def ms_deform_attn_from_tensors(
    value: Tensor,
    spatial_shapes: Tensor,
    level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int | None = None,
) -> Tensor:
    """The call of Deformable DETR's operator, for code that was written against it.

    Waits for the device once, to read the level sizes: call `ms_deform_attn` in new code.

    Args:
        value, sampling_locations, attention_weights: as of `ms_deform_attn`.
        spatial_shapes: (L, 2) integers, (H, W) of each level.
        level_start_index: (L,) integers, the first pixel of each level; must be what
            spatial_shapes says.
        im2col_step: accepted for the signature's sake; there is no such restriction here.

    Returns:
        (N, Q, M * D).

    Raises:
        ValueError: as of `ms_deform_attn`, or levels that do not follow each other.
    """
    shapes = [(int(height), int(width)) for height, width in spatial_shapes.tolist()]
    starts = [0]
    for height, width in shapes:
        starts.append(starts[-1] + height * width)
    if level_start_index.tolist() != starts[:-1]:
        raise ValueError(
            f"level_start_index must be {starts[:-1]} for spatial_shapes {shapes}, got "
            f"{level_start_index.tolist()}"
        )
    return ms_deform_attn(value, shapes, sampling_locations, attention_weights)
