"""From the predictions of all anchors to detections."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image, nms


class DecodedLevel(NamedTuple):
    """What a dense head predicts for the A anchors of one level.

    Attributes:
        boxes: (B, A, 4): x1, y1, x2, y2 in pixels.
        scores: (B, A, K), in [0, 1].
        quality: (B, A), what the scores of chosen candidates are multiplied with, in [0, 1].
    """

    boxes: Tensor
    scores: Tensor
    quality: Tensor | None


class Detections(NamedTuple):
    """Detections of one image, best first.

    Attributes:
        boxes: (n, 4): x1, y1, x2, y2 in pixels.
        scores: (n,), in [0, 1].
        classes: (n,) int64.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def detect(
    levels: Sequence[DecodedLevel],
    index: int,
    image_size: tuple[int, int],
    *,
    score_threshold: float,
    candidates_per_level: int,
    nms_threshold: float,
    max_detections: int,
) -> Detections:
    """The best candidates of every level, suppressed by better ones of their class.

    Args:
        levels: of a batch.
        index: of the image in it.
        image_size: (height, width) in pixels, to which boxes are clipped.
        score_threshold: candidates score more, before the quality.
        candidates_per_level: at most, before suppression.
        nms_threshold: a box whose IoU with a better one is larger is dropped.
        max_detections: at most.
    """
    boxes, scores, classes = [], [], []
    for level in levels:
        flat = level.scores[index].flatten()
        best, place = flat.topk(min(candidates_per_level, flat.shape[0]))
        above = best > score_threshold
        best, place = best[above], place[above]
        num_classes = level.scores.shape[-1]
        anchors = place // num_classes
        boxes.append(clip_boxes_to_image(level.boxes[index, anchors], image_size))
        classes.append(place % num_classes)
        scores.append(best if level.quality is None else best * level.quality[index, anchors])
    found = Detections(torch.cat(boxes), torch.cat(scores), torch.cat(classes))
    # A box in the padding is clipped to nothing.
    inside = (found.boxes[:, 2:] > found.boxes[:, :2]).all(dim=1)
    found = Detections(*(values[inside] for values in found))
    keep = nms_of_classes(found, image_size, nms_threshold)[:max_detections]
    return Detections(*(values[keep] for values in found))


def nms_of_classes(found: Detections, image_size: tuple[int, int], threshold: float) -> Tensor:
    """Non-maximum suppression of every class by itself.

    As torchvision's `batched_nms`, without its branches on the number of boxes, so that it can be
    exported: every class is moved to a place of its own, in float64, where that loses nothing.

    Args:
        found: of one image, boxes inside it.
        image_size: (height, width), pixels.
        threshold: a box whose IoU with a better one is larger is dropped.

    Returns:
        (m,) int64: those that are kept, best first.
    """
    shift = found.classes.double() * (max(image_size) + 1)
    return nms(found.boxes.double() + shift[:, None], found.scores.double(), threshold)
