"""IoU of boxes pair by pair; torchvision has that of all with all."""

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
    low = torch.maximum(boxes[:, :2], others[:, :2])
    high = torch.minimum(boxes[:, 2:], others[:, 2:])
    overlap = (high - low).clamp(min=0).prod(dim=-1)
    areas = sum((b[:, 2:] - b[:, :2]).prod(dim=-1) for b in (boxes, others))
    return overlap / (areas - overlap).clamp(min=torch.finfo(boxes.dtype).tiny)
