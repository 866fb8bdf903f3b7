"""What is predicted of a query, and the small networks that read it from the query's content."""

import math
from typing import NamedTuple

from torch import Tensor, nn

from ...layers.linear import Linear

PRIOR = 0.01  # probability of every class at the start, as in focal loss's paper


class Prediction(NamedTuple):
    """Classes and boxes of queries.

    Attributes:
        logits: (B, Q, K), of classes that do not exclude each other.
        boxes: (B, Q, 4) float32 as (cx, cy, w, h); [0, 1] is the image.
    """

    logits: Tensor
    boxes: Tensor


def class_embed(dim: int, num_classes: int) -> Linear:
    """(..., dim) -> (..., num_classes) logits, each class unlikely at the start."""
    linear = Linear(dim, num_classes)
    nn.init.constant_(linear.bias, -math.log((1 - PRIOR) / PRIOR))
    return linear


def bbox_embed(dim: int) -> nn.Sequential:
    """(..., dim) -> (..., 4) changes of a box's logits, which start at zero."""
    last = Linear(dim, 4)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(Linear(dim, dim), nn.ReLU(), Linear(dim, dim), nn.ReLU(), last)
