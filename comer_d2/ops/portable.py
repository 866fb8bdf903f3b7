"""The operators in elementary operations, for runtimes that do not have them: what an ONNX file consists of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from .ms_deform_attn_gather import ms_deform_attn_fused_gather, ms_deform_attn_gather
from .registry import ops, pairs
from .token_depthwise_conv_dispatch import by_conv2d


def portable_decompositions() -> dict[Callable, Callable]:
    """What replaces the operators in a program of `torch.export`.

    Returns:
        Operator -> function, for `ExportedProgram.run_decompositions`, together with
        `torch.export.default_decompositions()`.
    """
    return {
        ops.ms_deform_attn.default: _attention,
        ops.ms_deform_attn_fused.default: _fused_attention,
        ops.token_depthwise_conv.default: by_conv2d,
    }


def _attention(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    return ms_deform_attn_gather(value, pairs(shapes), locations, weights)


def _fused_attention(
    value: Tensor, shapes: Sequence[int], projected: Tensor, reference_points: Tensor
) -> Tensor:
    return ms_deform_attn_fused_gather(value, pairs(shapes), projected, reference_points)
