"""Panoptic segments of a batch, in steps whose sizes do not depend on what is found."""

from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from ...heads.detections import NOTHING


class Segments(NamedTuple):
    """Panoptic segmentation of a batch.

    Attributes:
        panoptic_seg: (B, H, W) int64: each pixel's segment, from 1 on; 0 for none.
        segment_scores: (B, Q), those of segments 1, 2, ...; behind them zeros.
        segment_classes: (B, Q) int64; behind them -1.
    """

    panoptic_seg: Tensor
    segment_scores: Tensor
    segment_classes: Tensor


class Winners(NamedTuple):
    """Of every pixel the query with the highest score times mask probability.

    Attributes:
        query: (B, H, W) int64.
        clear: (B, H, W) bool, whether its mask's probability is half or more.
        own_area: (B, Q) int64, pixels where a mask's probability is half or more.
    """

    query: Tensor
    clear: Tensor
    own_area: Tensor


def panoptic_segments(
    logits: Tensor,
    masks: Iterable[Tensor],
    *,
    stuff_classes: Collection[int],
    score_threshold: float,
    overlap_threshold: float,
) -> Segments:
    """`comer_d2.d2.modeling.mask_inference.panoptic_segments` of a batch.

    Args:
        logits: (B, Q, K + 1), the last of no object.
        masks: some queries' mask logits at a time, (B, q, H, W) in the images' pixels, all in turn.
        stuff_classes: classes whose queries become one segment.
        score_threshold: queries whose class probability is not above it are left out.
        overlap_threshold: and those that win less than this share of their own mask.
    """
    scores, classes = logits.softmax(dim=-1).max(dim=-1)
    kept = (classes != logits.shape[-1] - 1) & (scores > score_threshold)
    winners = _winners(scores.masked_fill(~kept, -1), masks)
    won = _counts(winners.query, torch.ones_like(winners.query), kept.shape[1])
    seen = _counts(winners.query, winners.clear.long(), kept.shape[1])
    # In float64, as Python compares them.
    enough = won.double() >= overlap_threshold * winners.own_area.double()
    kept = kept & (winners.own_area > 0) & enough & (seen > 0)

    # A segment begins with its leader: of stuff its class's first query, of a thing itself.
    number = torch.arange(kept.shape[1], device=kept.device)
    stuff = torch.tensor(sorted(stuff_classes), dtype=torch.int64, device=kept.device)
    is_stuff = (classes[..., None] == stuff).any(dim=-1)
    alike = (classes[:, :, None] == classes[:, None]) & is_stuff[:, :, None] & kept[:, None]
    leader = torch.where(alike, number, number[:, None]).amin(dim=-1)
    leads = kept & (leader == number)
    identity = leads.long().cumsum(dim=1).gather(1, leader).masked_fill(~kept, 0)
    segments = identity.gather(1, winners.query.flatten(1)).unflatten(1, winners.query.shape[1:])

    # What does not lead goes to place 0, which is cut off.
    place = identity.masked_fill(~leads, 0)
    table = scores.new_zeros(kept.shape[0], kept.shape[1] + 1)
    of_scores = table.scatter(1, place, scores)[:, 1:]
    of_classes = torch.full_like(table, NOTHING, dtype=torch.int64).scatter(1, place, classes)
    return Segments(segments.masked_fill(~winners.clear, 0), of_scores, of_classes[:, 1:])


def _winners(scores: Tensor, masks: Iterable[Tensor]) -> Winners:
    """The best query of every pixel; one with a score below 0 wins where there is no other."""
    best = query = of_best = None
    areas: list[Tensor] = []
    start = 0
    for some in masks:
        probability = some.sigmoid()
        stop = start + some.shape[1]
        areas.append((probability >= 0.5).flatten(2).sum(dim=2))
        own = scores[:, start:stop, None, None]
        highest, index = torch.where(own < 0, own, probability * own).max(dim=1)
        value = probability.gather(1, index[:, None])[:, 0]
        index = index + start
        if best is not None:
            better = highest > best
            highest = torch.where(better, highest, best)
            index = torch.where(better, index, query)
            value = torch.where(better, value, of_best)
        best, query, of_best = highest, index, value
        start = stop
    return Winners(query, of_best >= 0.5, torch.cat(areas, dim=1))


def _counts(places: Tensor, values: Tensor, number: int) -> Tensor:
    """(B, H, W) places and int64 values -> (B, number), their sum in every place."""
    sums = values.new_zeros(places.shape[0], number)
    return sums.scatter_add(1, places.flatten(1), values.flatten(1))
