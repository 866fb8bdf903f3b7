"""The meaning of the token convolution, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Kernels = Sequence[Sequence[Tensor]]  # one for each set and channel group


def token_depthwise_conv_reference(
    tokens: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    weight: Tensor | Kernels,
    bias: Tensor | Kernels | None = None,
) -> Tensor:
    """The depthwise convolution of every level, by one `conv2d` for each level and channel group.

    Half types are computed in float32.

    Args:
        tokens: as of `token_depthwise_conv`.
        spatial_shapes: as of `token_depthwise_conv`.
        weight: as of `token_depthwise_conv`.
        bias: as of `token_depthwise_conv`.

    Returns:
        (B, S, C), in tokens' dtype.
    """
    weights = [[weight]] if isinstance(weight, Tensor) else weight
    biases = [[bias]] if isinstance(bias, Tensor) else bias
    dtype = accumulation_dtype(tokens)
    levels = []
    for level, image in enumerate(_images(tokens.to(dtype), spatial_shapes)):
        if 0 in image.shape[2:]:  # conv2d refuses a side of 0
            levels.append(image.flatten(2).transpose(1, 2))
            continue
        number = level if len(weights) > 1 else 0
        parts = image.chunk(len(weights[number]), dim=1)
        results = [
            F.conv2d(
                part,
                kernel.to(dtype),
                None if biases is None else biases[number][group].to(dtype),
                padding=kernel.shape[-1] // 2,
                groups=part.shape[1],
            )
            for group, (part, kernel) in enumerate(zip(parts, weights[number]))
        ]
        levels.append(torch.cat(results, dim=1).flatten(2).transpose(1, 2))
    result = torch.cat(levels, dim=1) if levels else torch.zeros_like(tokens, dtype=dtype)
    return result.to(tokens.dtype)


def token_depthwise_conv_reference_backward(
    grad_output: Tensor,
    tokens: Tensor,
    spatial_shapes: Sequence[tuple[int, int]],
    weight: Kernels,
) -> tuple[Tensor, list[list[Tensor]], list[list[Tensor]]]:
    """The derivative of `token_depthwise_conv_reference`, where autograd is not at work.

    Args:
        grad_output: (B, S, C).
        tokens: as of the forward.
        spatial_shapes: as of the forward.
        weight: as of the forward.

    Returns:
        Gradients of the tokens in their dtype, and of weight and bias in that of the arithmetic.
    """
    dtype = accumulation_dtype(tokens)
    grad_weights = [[torch.zeros_like(w, dtype=dtype) for w in row] for row in weight]
    grad_biases = [[grad.sum((1, 2, 3)) for grad in row] for row in grad_weights]
    images = _images(tokens.to(dtype), spatial_shapes)
    grads = _images(grad_output.to(dtype), spatial_shapes)
    levels = []
    for level, (image, grad) in enumerate(zip(images, grads)):
        if 0 in image.shape[2:]:
            levels.append(image.flatten(2).transpose(1, 2))
            continue
        number = level if len(weight) > 1 else 0
        parts = []
        for group, kernel in enumerate(weight[number]):
            channels, half = kernel.shape[0], kernel.shape[-1] // 2
            grad_part, grad_kernel, grad_bias = torch.ops.aten.convolution_backward(
                grad.chunk(len(weight[number]), dim=1)[group],
                image.chunk(len(weight[number]), dim=1)[group],
                kernel.to(dtype), [channels], [1, 1], [half, half], [1, 1], False, [0, 0],
                channels, [True, True, True],
            )  # fmt: skip
            grad_weights[number][group] += grad_kernel
            grad_biases[number][group] += grad_bias
            parts.append(grad_part)
        levels.append(torch.cat(parts, dim=1).flatten(2).transpose(1, 2))
    grad_tokens = torch.cat(levels, dim=1) if levels else torch.zeros_like(tokens)
    return grad_tokens.to(tokens.dtype), grad_weights, grad_biases


def accumulation_dtype(tokens: Tensor) -> torch.dtype:
    """What half types are computed in."""
    return torch.float64 if tokens.dtype == torch.float64 else torch.float32


def _images(tokens: Tensor, spatial_shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """(B, S, C) as one (B, C, H, W) a level."""
    levels = tokens.split([h * w for h, w in spatial_shapes], dim=1) if spatial_shapes else []
    return [
        level.transpose(1, 2).unflatten(2, shape) for level, shape in zip(levels, spatial_shapes)
    ]
