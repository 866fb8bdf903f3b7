"""Weights in autocast's type: for one forward of a training step, or for good in inference."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .norm import LayerNorm, LayerScale
from .token_conv import DepthwiseKernel, TokenDepthwiseConv

Place = tuple[nn.Module, str, Tensor]  # module, parameter's name, weight
MATRICES = (nn.Linear, _ConvNd)
# Their operator reads float32 weights beside half tokens.
IN_FLOAT32 = (DepthwiseKernel, TokenDepthwiseConv)


def narrow_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Keeps in a half type the weights that autocast would cast in every forward.

    Those of linear layers and convolutions. Under autocast of the same type the model computes the
    same numbers as before; norms, tables, gates and scales stay in float32.

    Args:
        model: changed in place; not to be trained afterwards.
        dtype: float16 or bfloat16, autocast's type.
    """
    for module in model.modules():
        if isinstance(module, MATRICES) and not isinstance(module, IN_FLOAT32):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)


class Cast(torch.autograd.Function):
    """Casts many tensors by few kernels, there and back."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(cast_together(weights, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [grad for grad in grads if grad is not None]
        cast = iter(cast_together(given, torch.float32))
        return None, *(None if grad is None else next(cast) for grad in grads)


def cast_together(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies of tensors in another type, by one kernel for many."""
    results = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if results:
        torch._foreach_copy_(results, list(tensors))
    return results


@contextmanager
def narrowed(*parts: nn.Module, device: str) -> Iterator[None]:
    """Gives layers their weights in autocast's type while the context is open, where autocast is on.

    Autocast casts each weight and each bias by itself, forward and backward: kernels that take longer
    to launch than to run. Here all weights of the parts are cast together. A layer that looks up a
    parameter by its name finds the cast one; ``parameters()`` and the gradients are the module's own,
    in float32. What is compiled casts for itself. Weights of a type of their own, such as quantised or
    sharded ones, are left alone, and so is what is inside a module with forward hooks, which may read or
    change weights: there autocast casts.

    Args:
        parts: modules whose linear layers, convolutions, layer norms and layer scales run within.
        device: type of the device they run on.
    """
    if (
        device == "meta"  # of which PyTorch refuses the next question
        or not torch.is_autocast_enabled(device)
        or not torch.is_grad_enabled()
        or torch.compiler.is_compiling()
    ):
        yield
        return
    kinds = (*MATRICES, LayerScale) if device == "cpu" else (*MATRICES, LayerScale, LayerNorm)
    places = [
        (module, name, parameter)
        for part in parts
        for module in plain_modules(part)
        if isinstance(module, kinds) and not isinstance(module, IN_FLOAT32)
        for name, parameter in module._parameters.items()
        if isinstance(parameter, nn.Parameter)
        and not is_traceable_wrapper_subclass(parameter)
        and parameter.dtype == torch.float32
        and name not in module.__dict__  # of a context around this one
    ]
    trained = [place for place in places if place[2].requires_grad]
    frozen = [place for place in places if not place[2].requires_grad]
    dtype = torch.get_autocast_dtype(device)
    cast = Cast.apply(dtype, *(p for _, _, p in trained)) if trained else ()
    cast = [*cast, *cast_together([p for _, _, p in frozen], dtype)]
    names = [(module, name) for module, name, _ in trained + frozen]
    with installed([(*place, weight) for place, weight in zip(names, cast, strict=True)]):
        yield


def plain_modules(part: nn.Module) -> Iterator[nn.Module]:
    """A part and what is in it, but what ``torch.compile`` has compiled or what has forward hooks."""
    if part._compiled_call_impl is None and not (part._forward_pre_hooks or part._forward_hooks):
        yield part
        for child in part.children():
            yield from plain_modules(child)


@contextmanager
def installed(weights: Sequence[Place]) -> Iterator[None]:
    """Gives modules other weights while the context is open: (module, parameter's name, weight)."""
    try:
        for module, name, weight in weights:
            module.__dict__[name] = weight  # found before the parameter of that name
        yield
    finally:
        for module, name, _ in weights:
            module.__dict__.pop(name, None)


def installed_in(parts: Sequence[nn.Module]) -> list[Place]:
    """What :func:`installed` has given the modules of some parts."""
    return [
        (module, name, module.__dict__[name])
        for part in parts
        for module in part.modules()
        for name in module._parameters
        if name in module.__dict__
    ]
