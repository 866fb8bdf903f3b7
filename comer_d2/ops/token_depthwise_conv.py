"""The depthwise convolution of every level of a token pyramid, in one call."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .registry import flat, is_autocast, ops
from .token_depthwise_conv_dispatch import check
from .token_depthwise_conv_reference import Kernels


def token_depthwise_conv(
    tokens: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    weight: Tensor | Kernels,
    bias: Tensor | Kernels | None = None,
) -> Tensor:
    """Convolves every level of a token pyramid, each channel by itself, with zeros around the level.

    Half types are accumulated in float32. Under autocast the tokens take autocast's type. No plan is
    built for a shape: an image of a new size costs what the same size costs again.

    Args:
        tokens: (B, S, C), float64, float32, float16 or bfloat16: the levels one after the other, each
            row by row; S = sum of H * W.
        spatial_shapes: (H, W) of each of the L levels, Python ints.
        weight: (C, 1, k, k) with an odd k, shared by the levels; or for each level (or once, shared)
            one such tensor for every group of C / G neighbouring channels, which may differ in k. In
            tokens' dtype or, beside a half type, float32.
        bias: (C,), or (C / G,) for each level and group as ``weight``; zero if not given.

    Returns:
        (B, S, C) in tokens' dtype.

    Raises:
        ValueError: a shape, dtype or device that does not fit; it names the argument.

    Source: the convolutions of Sec. 3.2 of arXiv 2403.07392, and of ViT-Adapter's ConvFFN.
    """
    weights = [[weight]] if isinstance(weight, Tensor) else weight
    biases = [[bias]] if isinstance(bias, Tensor) else bias
    kernel_sizes = _kernel_sizes(weights, tokens, len(spatial_shapes))
    flat_weight = _joined(weights)
    if biases is None:
        flat_bias = flat_weight.new_zeros(len(weights) * tokens.shape[-1])
    else:
        flat_bias = _joined(biases)
    if not is_autocast(tokens):
        check(tokens, spatial_shapes, flat_weight, flat_bias, kernel_sizes)
    return ops.token_depthwise_conv(
        tokens, flat(spatial_shapes), flat_weight, flat_bias, kernel_sizes
    )


def _joined(tensors: Kernels) -> Tensor:
    parts = [tensor.reshape(-1) for row in tensors for tensor in row]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _kernel_sizes(weights: Kernels, tokens: Tensor, levels: int) -> list[int]:
    """The side of each channel group's kernels, which all levels have."""
    shapes = [[tuple(weight.shape) for weight in row] for row in weights]
    if len(shapes) not in (1, levels) or not shapes[0] or any(s != shapes[0] for s in shapes):
        raise ValueError(
            f"weight must have the same groups once, or for each of the {levels} levels, got shapes "
            f"{shapes}"
        )
    for shape in shapes[0]:
        side = shape[-1] if shape else 0
        wanted = (tokens.shape[-1] // len(shapes[0]), 1, side, side)
        if shape != wanted or side % 2 == 0:
            raise ValueError(
                f"weight must have shape (C / G, 1, k, k) with C of tokens {tuple(tokens.shape)}, "
                f"{len(shapes[0])} group(s) and an odd k, got {shape}"
            )
    return [shape[-1] for shape in shapes[0]]
