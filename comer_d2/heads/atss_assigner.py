"""Adaptive training sample selection: which anchors are to learn which object."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou

from .box_coding import encode_distances
from .dense_anchors import anchor_centers

# Pixels by which the center of an anchor must be inside an object, so that centerness is defined.
LEAST_DISTANCE = 0.01


@torch.no_grad()
def assign_atss(anchors: Sequence[Tensor], boxes: Tensor, *, top_k: int = 9) -> Tensor:
    """Assigns objects to anchors by the statistics of the anchors around each object.

    An object's candidates are the `top_k` anchors of every level whose centers are nearest to its
    own. Positive are those whose IoU with it is at least the mean plus the standard deviation of
    its candidates' IoU, and whose center is inside it. An anchor that is positive for several
    objects gets the one of highest IoU.

    Source: Algorithm 1 of arXiv 1912.02424.

    Args:
        anchors: of every level, (A_l, 4): x1, y1, x2, y2 in pixels.
        boxes: of the objects, (n, 4).
        top_k: candidates per level; all anchors of a level that has fewer.

    Returns:
        (A,) int64, A the anchors of all levels: the object's index, or -1.
    """
    every = torch.cat(list(anchors))
    assigned = torch.full((len(every),), -1, device=every.device)
    if len(boxes) == 0 or len(every) == 0:
        return assigned
    centers = anchor_centers(every)
    distances = torch.cdist(
        centers, anchor_centers(boxes), compute_mode="donot_use_mm_for_euclid_dist"
    )
    candidates, start = [], 0
    for level in anchors:
        nearest = distances[start : start + len(level)].topk(
            min(top_k, len(level)), dim=0, largest=False
        )
        candidates.append(nearest.indices + start)
        start += len(level)
    chosen = torch.cat(candidates)  # (candidates, n)

    iou = box_iou(every, boxes)
    of_candidates = iou.gather(0, chosen)
    threshold = of_candidates.mean(dim=0) + of_candidates.std(dim=0)
    inside = encode_distances(boxes, centers[chosen]).amin(dim=-1) > LEAST_DISTANCE
    positive = (of_candidates >= threshold) & inside

    # -1 for no candidate: any IoU is more.
    best = torch.full_like(iou, -1).scatter(0, chosen, of_candidates.where(positive, -1))
    highest, objects = best.max(dim=1)
    return objects.where(highest >= 0, -1)
