"""From the masks and classes of queries to semantic, instance and panoptic segmentation.

All three enlarge a few masks at a time, so that memory does not grow with the number of queries.

Source: Sec. 3 and 4 of arXiv 2112.01527, and its released inference.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Instances
from torch import Tensor

MASKS_AT_A_TIME = 16


@dataclass(frozen=True)
class Frame:
    """The sizes, (height, width) in pixels, that a mask goes through.

    Args:
        padded: of the batch that the network saw.
        image: of this image in it, at the top left.
        output: of the result.
    """

    padded: tuple[int, int]
    image: tuple[int, int]
    output: tuple[int, int]


def semantic_scores(logits: Tensor, masks: Tensor, frame: Frame) -> Tensor:
    """Sum over queries of class probability times mask.

    Args:
        logits: (Q, K + 1), the last of no object.
        masks: (Q, h, w) mask logits.
        frame: sizes.

    Returns:
        (K, *frame.output) float32, at least 0.
    """
    probabilities = logits.float().softmax(dim=-1)[:, :-1]
    scores = logits.new_zeros(probabilities.shape[1], *frame.image, dtype=torch.float32)
    for chosen, enlarged in _enlarge(masks, frame.padded, frame.image, frame.image):
        scores += torch.einsum("qk,qhw->khw", probabilities[chosen], enlarged.sigmoid())
    return _resize(scores, frame.output)


def instances(
    logits: Tensor,
    masks: Tensor,
    frame: Frame,
    *,
    max_instances: int = 100,
    stuff_classes: Collection[int] = (),
) -> Instances:
    """The best pairs of query and class.

    The score is the class probability times the mask's mean probability inside itself. Pairs whose
    mask is empty, or whose class is stuff, are left out.

    Args:
        logits: (Q, K + 1), the last of no object.
        masks: (Q, h, w) mask logits.
        frame: sizes.
        max_instances: pairs that are taken, at most.
        stuff_classes: classes that have no instances.

    Returns:
        Instances of `frame.output` with `scores`, `pred_classes`, `pred_masks` (n, H, W) bool and
        `pred_boxes`, best score first.
    """
    num_classes = logits.shape[1] - 1
    probabilities = logits.float().softmax(dim=-1)[:, :-1].flatten()
    scores, pairs = probabilities.topk(min(max_instances, len(probabilities)))
    queries, classes = pairs // num_classes, pairs % num_classes
    if stuff_classes:
        stuff = torch.tensor(sorted(stuff_classes), device=classes.device)
        is_thing = ~torch.isin(classes, stuff)
        scores, queries, classes = scores[is_thing], queries[is_thing], classes[is_thing]

    binary = torch.zeros(len(queries), *frame.output, dtype=torch.bool, device=masks.device)
    quality = torch.zeros_like(scores)
    for chosen, enlarged in _enlarge(masks[queries], frame.padded, frame.image, frame.output):
        inside = enlarged > 0
        binary[chosen] = inside
        area = inside.flatten(1).sum(1)
        quality[chosen] = (enlarged.sigmoid() * inside).flatten(1).sum(1) / area.clamp(min=1)
    scores = scores * quality
    kept = scores.argsort(descending=True, stable=True)
    kept = kept[quality[kept] > 0]
    result = Instances(frame.output)
    result.scores = scores[kept]
    result.pred_classes = classes[kept]
    result.pred_masks = binary[kept]
    result.pred_boxes = BitMasks(result.pred_masks).get_bounding_boxes().to(masks.device)
    return result


def panoptic_segments(
    logits: Tensor,
    masks: Tensor,
    frame: Frame,
    *,
    stuff_classes: Collection[int],
    score_threshold: float = 0.8,
    overlap_threshold: float = 0.8,
) -> tuple[Tensor, list[dict[str, Any]]]:
    """Every pixel to the query with the highest score times mask probability.

    Args:
        logits: (Q, K + 1), the last of no object.
        masks: (Q, h, w) mask logits.
        frame: sizes.
        stuff_classes: classes whose queries become one segment.
        score_threshold: queries whose class probability is not above it are left out.
        overlap_threshold: and those that win less than this share of their own mask.

    Returns:
        (*frame.output) int32 segment ids, 0 for no segment; and for every segment `id`, `isthing`,
        `category_id` and `score`.
    """
    num_classes = logits.shape[1] - 1
    scores, classes = logits.float().softmax(dim=-1).max(dim=-1)
    kept = (classes != num_classes) & (scores > score_threshold)
    scores, classes, masks = scores[kept], classes[kept], masks[kept]
    segments = torch.zeros(frame.output, dtype=torch.int32, device=masks.device)
    info: list[dict[str, Any]] = []
    if not len(scores):
        return segments, info

    winner = torch.zeros(frame.output, dtype=torch.int64, device=masks.device)
    best = torch.full(frame.output, -1.0, device=masks.device)
    probability_of_winner = torch.zeros_like(best)
    own_area = torch.zeros(len(scores), dtype=torch.int64, device=masks.device)
    for chosen, enlarged in _enlarge(masks, frame.padded, frame.image, frame.output):
        probability = enlarged.sigmoid()
        own_area[chosen] = (probability >= 0.5).flatten(1).sum(1)
        weighted, index = (probability * scores[chosen, None, None]).max(dim=0)
        better = weighted > best
        best = torch.where(better, weighted, best)
        winner = torch.where(better, index + chosen.start, winner)
        own = probability.gather(0, index[None])[0]
        probability_of_winner = torch.where(better, own, probability_of_winner)

    won_area = winner.flatten().bincount(minlength=len(scores)).tolist()
    clear = probability_of_winner >= 0.5
    stuff_segment: dict[int, int] = {}
    rows = zip(classes.tolist(), scores.tolist(), own_area.tolist(), won_area, strict=True)
    for query, (label, score, own, won) in enumerate(rows):
        if own == 0 or won < overlap_threshold * own:
            continue
        mask = (winner == query) & clear
        if not mask.any():
            continue
        if label in stuff_segment:
            segments[mask] = stuff_segment[label]
            continue
        identity = len(info) + 1
        segments[mask] = identity
        is_thing = label not in stuff_classes
        if not is_thing:
            stuff_segment[label] = identity
        info.append({"id": identity, "isthing": is_thing, "category_id": label, "score": score})
    return segments, info


def _enlarge(
    masks: Tensor, padded: tuple[int, int], image: tuple[int, int], output: tuple[int, int]
) -> Iterator[tuple[slice, Tensor]]:
    """Yields slices of the queries and their mask logits (n, *output), float32."""
    for start in range(0, len(masks), MASKS_AT_A_TIME):
        chosen = slice(start, min(start + MASKS_AT_A_TIME, len(masks)))
        enlarged = _resize(masks[chosen].float(), padded)[:, : image[0], : image[1]]
        yield chosen, _resize(enlarged, output)


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(N, H, W) -> (N, *size), bilinear."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x[None], size=size, mode="bilinear", align_corners=False)[0]
