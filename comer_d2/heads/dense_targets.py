"""Training targets of every anchor of a dense detector."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .atss_assigner import assign_atss
from .dense_anchors import anchor_centers


class DenseTargets(NamedTuple):
    """Targets of the anchors of a batch, all A of all levels together.

    Attributes:
        labels: (B, A) int64: a class, or the number of classes for the background.
        boxes: (B, A, 4): x1, y1, x2, y2 of the assigned object in pixels; 0 for the background.
        inside: (B, A) bool: in the image; anchors in its padding learn nothing.
        positives: image and anchor of those with an object, each (P,) int64.
        num_positives: P, but an image without positives counts as one; float32, ().
    """

    labels: Tensor
    boxes: Tensor
    inside: Tensor
    positives: tuple[Tensor, Tensor]
    num_positives: Tensor


@torch.no_grad()
def dense_targets(
    anchors: Sequence[Tensor],
    strides: Sequence[int],
    targets: Sequence[dict[str, Tensor]],
    image_sizes: Sequence[tuple[int, int]],
    *,
    num_classes: int,
    top_k: int,
) -> DenseTargets:
    """Assigns the objects of every image to the anchors whose centers are inside it.

    Args:
        anchors: of every level, (H, W, 4).
        strides: of every level, pixels.
        targets: of every image `boxes` (n, 4), in pixels, and `labels` (n,).
        image_sizes: (height, width) of every image, pixels; the batch is padded beyond it.
        num_classes: label of the background.
        top_k: of :func:`~comer_d2.heads.atss_assigner.assign_atss`.
    """
    x, y = anchor_centers(torch.cat([level.flatten(0, 1) for level in anchors])).unbind(dim=-1)
    labels, boxes, inside = [], [], []
    for target, (height, width) in zip(targets, image_sizes, strict=True):
        # Cut out by whole numbers of Python, so that no device is waited for.
        cut = [
            level[: math.ceil(height / stride), : math.ceil(width / stride)]
            for level, stride in zip(anchors, strides, strict=True)
        ]
        assigned = assign_atss([a.flatten(0, 1) for a in cut], target["boxes"], top_k=top_k)
        of_levels = assigned.split([a.shape[0] * a.shape[1] for a in cut])
        of_cells = []
        for part, own, level in zip(of_levels, cut, anchors, strict=True):
            cells = part.new_full(level.shape[:2], -1)
            cells[: own.shape[0], : own.shape[1]] = part.unflatten(0, own.shape[:2])
            of_cells.append(cells.flatten())
        assigned = torch.cat(of_cells)  # -1, without an object, takes the entry appended here
        labels.append(torch.cat([target["labels"], assigned.new_tensor([num_classes])])[assigned])
        boxes.append(torch.cat([target["boxes"], x.new_zeros(1, 4)])[assigned])
        inside.append((x < width) & (y < height))
    all_labels = torch.stack(labels)
    positive = all_labels < num_classes
    image, anchor = positive.nonzero(as_tuple=True)
    return DenseTargets(
        all_labels,
        torch.stack(boxes),
        torch.stack(inside),
        (image, anchor),
        positive.sum(dim=1).clamp(min=1).sum().float(),
    )
