"""The operators' names in PyTorch's dispatcher, and what they all need there.

The compiled libraries hold schemas and kernels. What LibTorch's stable ABI leaves to Python is done with
these functions: the same names where no library is loaded, derivatives, and clear refusals.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from . import library

VALUE_TYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
HALF_TYPES = (torch.float16, torch.bfloat16)
NAMESPACE = "comer_d2_python" if library.is_stale else "comer_d2"
ops = getattr(torch.ops, NAMESPACE)
_registry = torch.library.Library(NAMESPACE, "FRAGMENT")


def define(schemas: dict[str, str]) -> None:
    """Defines the operators that no library has defined, and refuses vmap for all of them.

    Args:
        schemas: name -> arguments and results, as csrc/register.cpp has them.
    """
    for name, schema in schemas.items():
        if not hasattr(ops, name):
            _registry.define(name + schema)
        torch.library.register_vmap(f"{NAMESPACE}::{name}", _refuse_vmap)


def _refuse_vmap(info, in_dims, *args):
    raise NotImplementedError(
        "comer_d2's operators are not mapped by vmap: put the mapped dimension into the batch "
        "dimension of the arguments"
    )


def register_fallback(name: str, kernel: Callable) -> None:
    """Makes a Python function the kernel of every device that has no compiled one."""

    def warned(*args, **kwargs):
        library.warn_of_fallback(args[0].device.type)
        return kernel(*args, **kwargs)

    _registry.impl(name, warned, "CompositeExplicitAutograd")


def register_fake(name: str) -> Callable:
    """Decorates what gives the shapes of an operator's results, for torch.compile and export."""
    return torch.library.register_fake(f"{NAMESPACE}::{name}")


def register_autocast(name: str, cast: Callable[..., tuple]) -> None:
    """Makes autocast change an operator's arguments.

    Args:
        name: of the operator.
        cast: (autocast's dtype, *arguments) -> the arguments to call the operator with.
    """
    for device_type, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA")):

        def kernel(*args, device_type=device_type):
            args = cast(torch.get_autocast_dtype(device_type), *args)
            with torch.autocast(device_type, enabled=False):
                return getattr(ops, name)(*args)

        _registry.impl(name, kernel, key)


def is_autocast(tensor: Tensor) -> bool:
    """Whether autocast is going to change the arguments of a call with this tensor."""
    # PyTorch refuses the question for tensors without memory.
    return not tensor.is_meta and torch.is_autocast_enabled(tensor.device.type)


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """A context in which autocast leaves what is on this tensor's device alone."""
    # PyTorch has none for tensors without memory.
    return nullcontext() if tensor.is_meta else torch.autocast(tensor.device.type, enabled=False)


def register_autograd(name: str, backward: Callable, save: Callable, reference: str) -> None:
    """Gives an operator its first derivative, and clear errors for all others.

    `torch.library.register_autograd` would take forward-mode derivatives for zero without a word where no
    argument asks for a gradient, and a backward operator that has no derivative itself makes second
    derivatives wrong with no more than a warning.

    Args:
        name: of the operator; its backward operator is called `name`_backward.
        backward: (ctx, *gradients of results) -> gradient or None for each argument.
        save: (ctx, *arguments) -> None.
        reference: the public function that has the other derivatives.
    """

    def refuse_second(ctx, *grads):
        raise NotImplementedError(f"{name} has no second derivative; {reference} has one")

    _register_derivative(name, backward, save, reference)
    _register_derivative(f"{name}_backward", refuse_second, lambda ctx, *args: None, reference)


def _register_derivative(name: str, backward: Callable, save: Callable, reference: str) -> None:
    overload = getattr(ops, name).default

    def call(keyset, args):
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    class Derivative(torch.autograd.Function):
        @staticmethod
        def forward(ctx, keyset, *args):
            save(ctx, *args)
            return call(keyset, args)

        @staticmethod
        def backward(ctx, *grads):
            return None, *backward(ctx, *grads)

    def kernel(keyset, *args):
        if torch.autograd.forward_ad._current_level >= 0 and any(map(_has_tangent, args)):
            raise NotImplementedError(
                f"{name} has no forward-mode derivative: use reverse mode (backward), or {reference}"
            )
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            if torch._C._are_functorch_transforms_active():
                raise NotImplementedError(
                    f"{name} has no derivative in torch.func's transforms: use backward, or {reference}"
                )
            return Derivative.apply(keyset, *args)
        return call(keyset, args)

    _registry.impl(name, kernel, "Autograd", with_keyset=True)


def _has_tangent(argument: object) -> bool:
    if not isinstance(argument, Tensor):
        return False
    return torch.autograd.forward_ad.unpack_dual(argument).tangent is not None


def pairs(flat: Sequence[int]) -> list[tuple[int, int]]:
    """[H0, W0, H1, W1, ...] as [(H0, W0), (H1, W1), ...]."""
    return list(zip(flat[::2], flat[1::2]))


def flat(spatial_shapes: Sequence[tuple[int, int]]) -> list[int]:
    """[(H0, W0), (H1, W1), ...] as [H0, W0, H1, W1, ...]."""
    return [size for height, width in spatial_shapes for size in (height, width)]


# ------------------------------------------------------------------------------------------------
# Checks, the same as the compiled kernels', for devices and tracers that do not come there


def check_levels(name: str, tensor: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> None:
    """Raises ValueError where a call's first tensor has a wrong dtype or number of pixels (dim 1)."""
    if tensor.dtype not in VALUE_TYPES:
        raise ValueError(
            f"{name} must be float64, float32, float16 or bfloat16, got {tensor.dtype}"
        )
    covered = sum(height * width for height, width in spatial_shapes)
    if covered != tensor.shape[1]:
        raise ValueError(
            f"spatial_shapes {list(spatial_shapes)} cover {covered} pixels, but {name} of shape "
            f"{tuple(tensor.shape)} has {tensor.shape[1]}"
        )


def check_beside(name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    """Raises ValueError where a tensor's device or dtype does not fit that of the call's first."""
    if tensor.device != first.device:
        raise ValueError(
            f"{name} must be on the device of {first_name}, {first.device}, got {tensor.device}"
        )
    beside_half = tensor.dtype == torch.float32 and first.dtype in HALF_TYPES
    if tensor.dtype != first.dtype and not beside_half:
        raise ValueError(
            f"{name} must have {first_name}'s dtype ({first.dtype}) or float32 beside a half type, "
            f"got {tensor.dtype}"
        )
