"""Boxes with a score and a class, and their suppression: in batches, and of sizes that are known before.

How many boxes remain depends on the image. Here this is a mask, or places that stay empty, so that a
whole detector can be exported.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import nms

# More than the sides of any image, in pixels; with float64's 52 bits, thousands of classes times it
# leave a box its float32 coordinates.
APART = 2**20
NOTHING = -1  # the class of an empty place


class Detections(NamedTuple):
    """Detections of a batch.

    Attributes:
        boxes: (B, N, 4): x1, y1, x2, y2 in pixels.
        scores: (B, N), in [0, 1].
        classes: (B, N) int64.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def suppress(candidates: Detections, usable: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression of every class and every image by itself.

    As torchvision's `batched_nms`, without its branches on the number of boxes: every class of every
    image is moved to a place of its own, in float64, where that loses nothing.

    Args:
        candidates: of every image.
        usable: (B, N) bool, those that take part.
        threshold: a box whose IoU with a better one is larger is dropped.

    Returns:
        (B, N) bool: those that are kept.
    """
    batch, number = usable.shape
    image = torch.arange(batch, device=usable.device)[:, None]
    # Classes of image 0, then those of image 1, ...
    group = candidates.classes * batch + image
    boxes = candidates.boxes.double() + (group * APART)[..., None]
    # Two empty boxes take part, always: a program that was exported runs for two boxes or more, and a photo may have none.
    takes_part = F.pad(usable.flatten(), (0, 2), value=True)
    (at,) = takes_part.nonzero(as_tuple=True)
    corners = F.pad(boxes.flatten(0, 1), (0, 0, 0, 2))
    scores = F.pad(candidates.scores.double().flatten(), (0, 2))
    best = nms(corners[at], scores[at], threshold)
    kept = torch.zeros_like(takes_part).index_fill(0, at[best], True)[: batch * number]
    return kept.unflatten(0, (batch, number))


def best_detections(candidates: Detections, kept: Tensor, number: int) -> Detections:
    """The best of those that are kept, best first; places behind them have class -1 and zeros.

    Args:
        candidates: of every image.
        kept: (B, N) bool.
        number: places n, also if there are fewer candidates.

    Returns:
        (B, n, ...).
    """
    scores = candidates.scores.masked_fill(~kept, -torch.inf)
    scores = F.pad(scores, (0, number), value=-torch.inf)
    scores, at = scores.topk(number)
    empty = scores == -torch.inf
    at = at.masked_fill(empty, 0)
    boxes = candidates.boxes.gather(1, at[..., None].expand(-1, -1, 4))
    return Detections(
        boxes.masked_fill(empty[..., None], 0),
        scores.masked_fill(empty, 0),
        candidates.classes.gather(1, at).masked_fill(empty, NOTHING),
    )
