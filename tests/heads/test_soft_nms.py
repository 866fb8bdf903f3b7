"""Soft suppression, by hand."""

import pytest
import torch
from torch import Tensor

from comer_d2.heads.soft_nms import soft_nms

# Two boxes with an IoU of 0.6, one with 1/3 to the first, one apart.
BOXES = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 6], [5, 0, 15, 10], [100, 100, 110, 110]])
SCORES = torch.tensor([0.5, 0.9, 0.4, 0.3])


def suppressed(classes: list[int], threshold: float = 0.5, **options: float) -> list[list[float]]:
    kept, scores = soft_nms(
        BOXES, SCORES, torch.tensor(classes), iou_threshold=threshold, **options
    )
    return [kept.tolist(), [round(score, 4) for score in scores.tolist()]]


def test_overlapping_boxes_lose_score_and_fall_back() -> None:
    # 0.5 * (1 - 0.6)
    assert suppressed([1, 1, 1, 1]) == [[1, 2, 3, 0], [0.9, 0.4, 0.3, 0.2]]


def test_losses_of_score_add_up() -> None:
    # Box 2 overlaps box 1 by 30 of 130, box 0 by 50 of 150; box 0 comes after it.
    kept, scores = suppressed([1, 1, 1, 1], threshold=0.2)
    assert kept == [1, 2, 3, 0]
    assert scores == [0.9, round(0.4 * (1 - 30 / 130), 4), 0.3, round(0.5 * 0.4 * (1 - 1 / 3), 4)]


def test_classes_do_not_meet() -> None:
    assert suppressed([0, 1, 2, 3]) == [[1, 0, 2, 3], [0.9, 0.5, 0.4, 0.3]]


def test_the_threshold_itself_counts() -> None:
    boxes = torch.tensor([[0.0, 0, 8, 8], [0, 0, 8, 4]])  # an IoU of exactly 0.5
    args = (boxes, torch.tensor([0.9, 0.8]), torch.zeros(2))
    assert soft_nms(*args, iou_threshold=0.5)[1].tolist() == pytest.approx([0.9, 0.4])


def test_low_scores_are_dropped() -> None:
    assert suppressed([1, 1, 1, 1], min_score=0.25) == [[1, 2, 3], [0.9, 0.4, 0.3]]
    assert suppressed([1, 1, 1, 1], min_score=0.95) == [[], []]


def test_no_boxes() -> None:
    empty: Tensor = torch.zeros(0)
    kept, scores = soft_nms(torch.zeros(0, 4), empty, empty.long(), iou_threshold=0.5)
    assert (kept.shape, kept.dtype, scores.shape) == ((0,), torch.int64, (0,))
