"""Non-maximum suppression in ONNX, whose operator takes float32 alone."""

from collections.abc import Callable

import torch
import torchvision  # noqa: F401 - registers its operators
from onnxscript import DOUBLE, FLOAT, INT64
from onnxscript import opset18 as op

from ...heads.detections import APART


def translations() -> dict[Callable, Callable]:
    """PyTorch's operators -> what they become, for `torch.onnx.export`."""
    return {torch.ops.torchvision.nms.default: _nms}


def _nms(boxes: DOUBLE, scores: DOUBLE, iou_threshold: float) -> INT64:
    """`torchvision.ops.nms` of boxes that `suppress` moved apart by group, a multiple of APART each.

    In float32 they would lose their fractions out there: groups move to just outside each other.
    """
    apart = op.Constant(value_float=float(APART))
    apart = op.Cast(apart, to=DOUBLE.dtype)
    half = op.Cast(op.Constant(value_float=0.5), to=DOUBLE.dtype)
    left = op.Slice(boxes, [0], [1], [1])
    group = op.Floor(op.Add(op.Div(left, apart), half))
    local = op.Sub(boxes, op.Mul(group, apart))
    one = op.Cast(op.Constant(value_float=1.0), to=DOUBLE.dtype)
    step = op.Add(op.ReduceMax(local, keepdims=0), one)
    packed = op.Cast(op.Add(local, op.Mul(group, step)), to=FLOAT.dtype)
    chosen = op.NonMaxSuppression(
        op.Unsqueeze(packed, [0]),
        op.Unsqueeze(op.Cast(scores, to=FLOAT.dtype), [0, 1]),
        op.Constant(value_ints=[2**31 - 1]),
        op.Reshape(op.CastLike(iou_threshold, op.Constant(value_float=0.0)), [1]),
    )
    return op.Reshape(op.Slice(chosen, [2], [3], [1]), [-1])
