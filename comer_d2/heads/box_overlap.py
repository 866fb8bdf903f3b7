"""IoU of boxes pair by pair, with nothing that a GPU's host would have to wait for.

torchvision has that of all with all; its losses of pairs pick boxes by a mask, which waits.
"""

import torch
from torch import Tensor


def paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """IoU of each box with the other box at its own place.

    Args:
        boxes: (n, 4) as (x1, y1, x2, y2), in any unit.
        others: (n, 4).

    Returns:
        (n,); 0 where both are empty.
    """
    overlap, union = _overlap_and_union(boxes, others)
    return overlap / union.clamp(min=torch.finfo(boxes.dtype).tiny)


def paired_generalized_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Generalized IoU of each box with the other box at its own place.

    The IoU minus the share of the smallest box around both that is in neither.

    Source: Sec. 3 of arXiv 1902.09630.

    Args:
        boxes: (n, 4) as (x1, y1, x2, y2), in any unit.
        others: (n, 4).

    Returns:
        (n,), in [-1, 1].
    """
    tiny = torch.finfo(boxes.dtype).tiny
    overlap, union = _overlap_and_union(boxes, others)
    low = torch.minimum(boxes[:, :2], others[:, :2])
    high = torch.maximum(boxes[:, 2:], others[:, 2:])
    around = (high - low).prod(dim=-1)
    return overlap / union.clamp(min=tiny) - (around - union) / around.clamp(min=tiny)


def _overlap_and_union(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Areas (n,) that are in both and in either."""
    low = torch.maximum(boxes[:, :2], others[:, :2])
    high = torch.minimum(boxes[:, 2:], others[:, 2:])
    overlap = (high - low).clamp(min=0).prod(dim=-1)
    areas = sum((b[:, 2:] - b[:, :2]).prod(dim=-1) for b in (boxes, others))
    return overlap, areas - overlap
