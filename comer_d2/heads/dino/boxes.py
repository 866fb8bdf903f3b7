"""Boxes as DINO's queries have them: refined in logit space, encoded as sines."""

import torch
from torch import Tensor

from ...layers.positions import sine_encoding

LOGIT_EPS = 1e-3
BOX_TEMPERATURE = 10000


def inverse_sigmoid(x: Tensor) -> Tensor:
    """Logits of numbers in [0, 1], finite at both ends.

    ``log(x / (1 - x))`` with both terms at least 1e-3. (``torch.logit(x, eps=1e-3)`` also changes
    the other term: its result at 0 and 1 differs in the third digit from what models are trained on.)

    Args:
        x: of any shape; clamped to [0, 1].

    Returns:
        Of the same shape.
    """
    x = x.clamp(0, 1)
    return (x.clamp(min=LOGIT_EPS) / (1 - x).clamp(min=LOGIT_EPS)).log()


def encode_boxes(boxes: Tensor, dim: int) -> Tensor:
    """Sine encoding of boxes, in the order (cy, cx, w, h).

    Source: Sec. 3.3 of arXiv 2201.12329 (DAB-DETR).

    Args:
        boxes: (..., 4) as (cx, cy, w, h) in [0, 1].
        dim: channels of each coordinate, even.

    Returns:
        (..., 4 * dim).
    """
    order = boxes[..., [1, 0, 2, 3]] * (2 * torch.pi)
    return sine_encoding(order, dim, BOX_TEMPERATURE).flatten(-2)
