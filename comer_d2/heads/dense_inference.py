"""From the predictions of all anchors to detections."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from .detections import Detections, best_detections, suppress


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

    def of_image(self, index: int) -> "DecodedLevel":
        """The same of one image, as a batch of one."""
        part = slice(index, index + 1)
        quality = None if self.quality is None else self.quality[part]
        return DecodedLevel(self.boxes[part], self.scores[part], quality)


def detect(
    levels: Sequence[DecodedLevel],
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
        image_size: (height, width) of its images in pixels, to which boxes are clipped.
        score_threshold: candidates score more, before the quality.
        candidates_per_level: at most, before suppression.
        nms_threshold: a box whose IoU with a better one is larger is dropped.
        max_detections: places for detections.
    """
    boxes, scores, classes, usable = [], [], [], []
    for level in levels:
        flat = level.scores.flatten(1)
        # sym_min: in torch.export, which of them it is stays open.
        best, place = flat.topk(torch.sym_min(candidates_per_level, flat.shape[1]))
        num_classes = level.scores.shape[-1]
        anchors = place // num_classes
        boxes.append(level.boxes.gather(1, anchors[..., None].expand(-1, -1, 4)))
        classes.append(place % num_classes)
        usable.append(best > score_threshold)
        scores.append(best if level.quality is None else best * level.quality.gather(1, anchors))
    found = Detections(
        clip_boxes_to_image(torch.cat(boxes, 1), image_size),
        torch.cat(scores, 1),
        torch.cat(classes, 1),
    )
    # A box in the padding is clipped to nothing.
    inside = (found.boxes[..., 2:] > found.boxes[..., :2]).all(dim=-1)
    kept = suppress(found, torch.cat(usable, 1) & inside, nms_threshold)
    return best_detections(found, kept, max_detections)
