"""Overlaps of pairs are the diagonal of torchvision's of all with all."""

import torch
from torchvision.ops import box_iou, generalized_box_iou

from comer_d2.heads.box_overlap import paired_generalized_iou, paired_iou


def test_pairs_are_torchvisions_diagonal() -> None:
    corners = torch.rand(2, 50, 2, 2, dtype=torch.float64).sort(dim=2).values
    boxes, others = corners.flatten(2)
    others[0] = boxes[0]
    torch.testing.assert_close(paired_iou(boxes, others), box_iou(boxes, others).diagonal())
    generalized = generalized_box_iou(boxes, others).diagonal()
    assert generalized.min() < 0 < generalized.max() == 1
    torch.testing.assert_close(paired_generalized_iou(boxes, others), generalized)


def test_empty_boxes_have_no_overlap_and_no_gradient_but_a_number() -> None:
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
    overlap = paired_generalized_iou(boxes, boxes.detach())
    overlap.sum().backward()
    assert overlap.item() == 0
    assert boxes.grad is not None and boxes.grad.isfinite().all()
