"""Suppression in a program that was exported: photos with few boxes, or none, are photos."""

import pytest
import torch
from torch import Tensor, nn

from comer_d2.heads.detections import Detections, suppress


class Suppression(nn.Module):
    def forward(self, boxes: Tensor, scores: Tensor, classes: Tensor, usable: Tensor) -> Tensor:
        return suppress(Detections(boxes, scores, classes), usable, 0.5)


@pytest.fixture(scope="module")
def program() -> nn.Module:
    return torch.export.export(Suppression(), candidates(usable=6)).module()


def candidates(usable: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Six boxes in two images; the second of each image covers the first."""
    corners = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
    boxes = corners.expand(2, 3, 4).clone()
    scores = torch.tensor([[0.9, 0.8, 0.7]]).expand(2, 3).clone()
    takes_part = torch.arange(6).reshape(2, 3) < usable
    return boxes, scores, torch.zeros(2, 3, dtype=torch.int64), takes_part


@pytest.mark.parametrize("usable", range(7))
def test_any_number_of_boxes(program: nn.Module, usable: int) -> None:
    expected = [i < usable and i not in (1, 4) for i in range(6)]
    assert Suppression()(*candidates(usable)).flatten().tolist() == expected
    assert program(*candidates(usable)).flatten().tolist() == expected
