"""From DINO's queries to detections."""

import torch
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image

from ..detections import Detections
from .predictors import Prediction


def best_pairs(prediction: Prediction, image_size: tuple[int, int], number: int) -> Detections:
    """The best pairs of query and class.

    Args:
        prediction: of a batch.
        image_size: (h, w) of its images in pixels.
        number: of pairs, at most.
    """
    num_classes = prediction.logits.shape[-1]
    scores = prediction.logits.float().sigmoid().flatten(1)
    scores, at = scores.topk(min(number, scores.shape[1]))
    boxes = box_convert(prediction.boxes, "cxcywh", "xyxy")
    boxes = boxes.gather(1, (at // num_classes)[..., None].expand(-1, -1, 4))
    boxes = boxes * unit_of(image_size, boxes)
    return Detections(clip_boxes_to_image(boxes, image_size), scores, at % num_classes)


def unit_of(image_size: tuple[int, int], boxes: Tensor) -> Tensor:
    """(4,), what corners in [0, 1] are multiplied with to be pixels."""
    height, width = image_size
    # Filled, not made of a list: sizes stay free in torch.export.
    sides = [
        torch.full((), side, dtype=boxes.dtype, device=boxes.device) for side in (width, height)
    ]
    return torch.stack(sides * 2)
