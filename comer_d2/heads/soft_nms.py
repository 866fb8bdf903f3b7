"""Soft suppression: overlapping boxes of a class lose score instead of being dropped."""

import torch
from torch import Tensor
from torchvision.ops import box_iou


@torch.no_grad()
def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    *,
    iou_threshold: float,
    min_score: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Takes the best box again and again, and lowers the scores of those that overlap it.

    A box of the same class with an IoU of at least the threshold has its score multiplied by
    ``1 - IoU`` (the linear variant).

    Source: Sec. 3 of arXiv 1704.04503.

    Args:
        boxes: (n, 4) as (x1, y1, x2, y2).
        scores: (n,).
        classes: (n,); boxes of different classes do not meet.
        iou_threshold: from which IoU on.
        min_score: boxes below it are dropped.

    Returns:
        The kept boxes' numbers, best first, (m,) int64, and their new scores (m,).
    """
    # One box after the other: the loop is faster on the CPU than waiting for a GPU at every turn.
    overlap = (box_iou(boxes, boxes) * (classes[:, None] == classes)).float().cpu()
    factors = torch.where(overlap >= iou_threshold, 1 - overlap, 1.0)
    left = scores.float().cpu()
    kept, new = [], []
    for _ in range(len(left)):
        best = int(left.argmax())
        if left[best] < min_score:
            break
        kept.append(best)
        new.append(left[best])
        left = left * factors[best]
        left[best] = -1
    if not kept:
        return classes.new_zeros(0), scores.new_zeros(0)
    return torch.tensor(kept, device=boxes.device), torch.stack(new).to(scores)
