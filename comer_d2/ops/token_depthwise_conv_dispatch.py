"""The token convolution in PyTorch's dispatcher, as far as it is Python's part.

The operator takes all weights as one flat tensor, (channels, k, k) of every set and channel group one
after the other, and all biases as another: what its kernels read, and no list for autograd.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

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
from .token_depthwise_conv_reference import (
    token_depthwise_conv_reference,
    token_depthwise_conv_reference_backward,
)

define(
    {
        "token_depthwise_conv": "(Tensor tokens, SymInt[] spatial_shapes, Tensor weight, "
        "Tensor bias, int[] kernel_sizes) -> Tensor",
        "token_depthwise_conv_backward": "(Tensor grad_output, Tensor tokens, "
        "SymInt[] spatial_shapes, Tensor weight, Tensor bias, int[] kernel_sizes) "
        "-> (Tensor, Tensor, Tensor)",
    }
)


def check(
    tokens: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    weight: Tensor,
    bias: Tensor,
    kernel_sizes: Sequence[int],
) -> None:
    """Raises ValueError where the flat arguments do not fit together."""
    if tokens.dim() != 3:
        raise ValueError(f"tokens must have shape (B, S, C), got {tuple(tokens.shape)}")
    check_levels("tokens", tokens, spatial_shapes)
    channels, levels = tokens.shape[2], len(spatial_shapes)
    if not kernel_sizes or channels % len(kernel_sizes):
        raise ValueError(
            f"the channels of tokens {tuple(tokens.shape)} must be shared equally by the "
            f"{len(kernel_sizes)} kernel sizes"
        )
    if any(kernel % 2 == 0 or kernel < 1 for kernel in kernel_sizes):
        raise ValueError(f"kernel sizes must be odd, got {list(kernel_sizes)}")
    set_size = channels // len(kernel_sizes) * sum(kernel * kernel for kernel in kernel_sizes)
    for name, tensor, size in (("weight", weight, set_size), ("bias", bias, channels)):
        check_beside(name, tensor, "tokens", tokens)
        if tensor.dim() != 1 or tensor.shape[0] not in (size, size * levels):
            raise ValueError(
                f"{name} must hold {size} numbers for the {channels} channels of tokens, or as many "
                f"for each of the {levels} levels, got shape {tuple(tensor.shape)}"
            )
    if weight.shape[0] * channels != bias.shape[0] * set_size:
        raise ValueError(
            f"weight and bias must be of as many levels, got shapes {tuple(weight.shape)} and "
            f"{tuple(bias.shape)}"
        )


# ------------------------------------------------------------------------------------------------
# The kernel of every device that has no compiled one


def _sets(flat: Tensor, channels: int, kernel_sizes: Sequence[int]) -> list[list[Tensor]]:
    """Flat weights as (channels, 1, k, k) for each set and group; flat biases with sizes of 1."""
    share = channels // len(kernel_sizes)
    sizes = [share * kernel * kernel for kernel in kernel_sizes]
    sets = flat.view(-1, sum(sizes)) if flat.numel() else flat.view(1, 0)
    return [
        [part.view(share, 1, k, k) for part, k in zip(row.split(sizes), kernel_sizes)]
        for row in sets
    ]


def by_conv2d(tokens, flat_shapes, weight, bias, kernel_sizes) -> Tensor:
    """The operator on any device, in elementary operations."""
    check(tokens, pairs(flat_shapes), weight, bias, kernel_sizes)
    channels, ones = tokens.shape[2], [1] * len(kernel_sizes)
    if tokens.numel() == 0:
        return torch.empty_like(tokens)
    weights, biases = _sets(weight, channels, kernel_sizes), _sets(bias, channels, ones)
    biases = [[part.flatten() for part in row] for row in biases]
    return token_depthwise_conv_reference(tokens, pairs(flat_shapes), weights, biases)


def _fall_back_backward(
    grad_output, tokens, flat_shapes, weight, bias, kernel_sizes
) -> tuple[Tensor, Tensor, Tensor]:
    if tokens.numel() == 0:
        return torch.empty_like(tokens), torch.zeros_like(weight), torch.zeros_like(bias)
    weights = _sets(weight, tokens.shape[2], kernel_sizes)
    grad_tokens, grad_weights, grad_biases = token_depthwise_conv_reference_backward(
        grad_output, tokens, pairs(flat_shapes), weights
    )
    flat = [
        torch.cat([part.flatten() for row in grads for part in row])
        for grads in (grad_weights, grad_biases)
    ]
    return grad_tokens, flat[0].to(weight.dtype), flat[1].to(bias.dtype)


register_fallback("token_depthwise_conv", by_conv2d)
register_fallback("token_depthwise_conv_backward", _fall_back_backward)


# ------------------------------------------------------------------------------------------------
# Fake kernels, for torch.compile and export


@register_fake("token_depthwise_conv")
def _fake(tokens: Tensor, flat_shapes, weight: Tensor, bias: Tensor, kernel_sizes) -> Tensor:
    check(tokens, pairs(flat_shapes), weight, bias, kernel_sizes)
    return tokens.new_empty(tokens.shape)


@register_fake("token_depthwise_conv_backward")
def _fake_backward(
    grad_output, tokens, flat_shapes, weight, bias, kernel_sizes
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in (tokens, weight, bias))


# ------------------------------------------------------------------------------------------------
# Autograd


def _save(ctx, tokens, flat_shapes, weight, bias, kernel_sizes) -> None:
    ctx.flat_shapes, ctx.kernel_sizes = flat_shapes, kernel_sizes
    ctx.save_for_backward(tokens, weight, bias)


def _backward(ctx, grad_output: Tensor):
    tokens, weight, bias = ctx.saved_tensors
    grad_tokens, grad_weight, grad_bias = ops.token_depthwise_conv_backward(
        grad_output, tokens, ctx.flat_shapes, weight, bias, ctx.kernel_sizes
    )
    return grad_tokens, None, grad_weight, grad_bias, None


register_autograd(
    "token_depthwise_conv", _backward, _save, reference="token_depthwise_conv_reference"
)


# ------------------------------------------------------------------------------------------------
# Autocast: the tokens in autocast's type. The kernels read float32 weights beside them, so that
# nothing is gained by narrowing those.


def _cast(dtype, tokens: Tensor, flat_shapes, weight: Tensor, bias: Tensor, kernel_sizes) -> tuple:
    if tokens.dtype == torch.float64:
        return tokens, flat_shapes, weight, bias, kernel_sizes
    weight, bias = (t if t.dtype == dtype else t.float() for t in (weight, bias))
    return tokens.to(dtype), flat_shapes, weight, bias, kernel_sizes


register_autocast("token_depthwise_conv", _cast)


# ------------------------------------------------------------------------------------------------
# FLOPs


@register_flop_formula(ops.token_depthwise_conv)
def _flops(tokens, flat_shapes, weight, bias, kernel_sizes, *_, out_shape=None, **__) -> int:
    batch, pixels, channels = tokens
    taps = sum(kernel * kernel for kernel in kernel_sizes)
    return 2 * batch * pixels * (channels // len(kernel_sizes)) * taps


@register_flop_formula(ops.token_depthwise_conv_backward)
def _backward_flops(
    grad, tokens, flat_shapes, weight, bias, kernel_sizes, *_, out_shape=None, **__
) -> int:
    return 2 * _flops(tokens, flat_shapes, weight, bias, kernel_sizes)
