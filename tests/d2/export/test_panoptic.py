"""Panoptic segments in steps of known sizes: the same ones, under the same numbers."""

from collections.abc import Sequence

import pytest
import torch

from comer_d2.d2.export.panoptic import panoptic_segments
from comer_d2.d2.modeling import mask_inference

SIDES = (24, 32)
FRAME = mask_inference.Frame(SIDES, SIDES, SIDES)


def some_queries(classes: int, queries: int, images: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sure and unsure ones, blobs of many sizes that lie over each other, and empty masks."""
    logits = torch.randn(images, queries, classes + 1) * 3
    coarse = torch.randn(images * queries, 1, 3, 4) * 4 + torch.randn(images * queries, 1, 1, 1) * 3
    masks = torch.nn.functional.interpolate(coarse, SIDES, mode="bilinear")
    return logits, masks.view(images, queries, *SIDES)


@pytest.mark.parametrize("stuff", [(), (0,), (1, 2)])
@pytest.mark.parametrize("thresholds", [(0.0, 0.0), (0.4, 0.3), (0.6, 0.5), (1.0, 0.5)])
def test_as_the_model_puts_them_together(
    stuff: Sequence[int], thresholds: tuple[float, float]
) -> None:
    torch.manual_seed(0)
    logits, masks = some_queries(classes=4, queries=20, images=6)
    limits = dict(zip(("score_threshold", "overlap_threshold"), thresholds, strict=True))
    found = panoptic_segments(logits, masks.split(7, 1), stuff_classes=stuff, **limits)
    numbers = 0
    for image in range(len(logits)):
        expected, rows = mask_inference.panoptic_segments(
            logits[image], masks[image], FRAME, stuff_classes=stuff, **limits
        )
        assert torch.equal(found.panoptic_seg[image], expected.long())
        rest = len(logits[image]) - len(rows)
        assert (
            found.segment_classes[image].tolist()
            == [row["category_id"] for row in rows] + [-1] * rest
        )
        scores = torch.tensor([row["score"] for row in rows] + [0.0] * rest)
        torch.testing.assert_close(found.segment_scores[image], scores)
        numbers += len(rows)
    assert (numbers > 3) == (thresholds[0] < 1)
