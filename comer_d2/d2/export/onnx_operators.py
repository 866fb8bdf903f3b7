"""Operators that ONNX, or PyTorch's translation to it, computes otherwise: suppression, quotients of sizes."""

import operator
from collections.abc import Callable

import torch
import torchvision  # noqa: F401 - registers its operators
from onnxscript import DOUBLE, FLOAT, INT64
from onnxscript import opset18 as op

from ...heads.detections import APART


def translations() -> dict[Callable, Callable]:
    """PyTorch's operators -> what they become, for `torch.onnx.export`."""
    return {torch.ops.torchvision.nms.default: _nms, operator.floordiv: _floordiv}


def _floordiv(size: INT64, by: INT64) -> INT64:
    """Quotients of sizes that stay free, rounded down as Python's; PyTorch's translation rounds towards 0.

    Sizes that are rounded up, ``-(-size // by)``, would be rounded down: windows and cells would be missing.
    """
    return op.Div(op.Sub(size, op.Mod(size, by)), by)


def _nms(boxes: DOUBLE, scores: DOUBLE, iou_threshold: float) -> INT64:
    """`torchvision.ops.nms` of boxes that `suppress` moved apart by group, a multiple of APART each.

    In float32 they would lose their fractions out there: groups move next to each other, row by row of a
    square, so that thousands of them stay within float32's exact hundredths of a pixel.
    """
    apart = op.Cast(op.Constant(value_float=float(APART)), to=DOUBLE.dtype)
    half = op.Cast(op.Constant(value_float=0.5), to=DOUBLE.dtype)
    one = op.Cast(op.Constant(value_float=1.0), to=DOUBLE.dtype)
    left = op.Slice(boxes, [0], [1], [1])
    group = op.Floor(op.Add(op.Div(left, apart), half))
    local = op.Sub(boxes, op.Mul(group, apart))
    step = op.Add(op.ReduceMax(local, keepdims=0), one)
    columns = op.Ceil(op.Sqrt(op.Add(op.ReduceMax(group, keepdims=0), one)))
    row = op.Floor(op.Div(group, columns))
    column = op.Sub(group, op.Mul(row, columns))
    corner = op.Mul(op.Concat(column, row, column, row, axis=1), step)
    packed = op.Cast(op.Add(local, corner), to=FLOAT.dtype)
    chosen = op.NonMaxSuppression(
        op.Unsqueeze(packed, [0]),
        op.Unsqueeze(op.Cast(scores, to=FLOAT.dtype), [0, 1]),
        op.Constant(value_ints=[2**31 - 1]),
        op.Reshape(op.CastLike(iou_threshold, op.Constant(value_float=0.0)), [1]),
    )
    return op.Reshape(op.Slice(chosen, [2], [3], [1]), [-1])
