"""What counts as the same: in any order, with what rounding does, and nothing else."""

import pytest
import torch

from comer_d2.d2.errors import UserError
from comer_d2.d2.export.compare import difference
from comer_d2.d2.export.rcnn import DetectionsWithMasks
from comer_d2.d2.export.segmenters import Masks, Scores
from comer_d2.heads.detections import Detections

BOXES = torch.tensor([[[0.0, 0, 9, 9], [5, 5, 20, 20], [0, 0, 0, 0]]])
SCORES = torch.tensor([[0.9, 0.8, 0.0]])
CLASSES = torch.tensor([[2, 1, -1]])
FOUND = Detections(BOXES, SCORES, CLASSES)
GRIDS = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
MASKS = Masks(SCORES, CLASSES, torch.rand(1, 3, 40, 40, generator=torch.Generator().manual_seed(1)) > 0.5)  # fmt: skip
SWAPPED = [1, 0, 2]


@pytest.mark.parametrize("outputs", [FOUND, DetectionsWithMasks(*FOUND, GRIDS), MASKS])
def test_the_order_is_free(outputs: tuple[torch.Tensor, ...]) -> None:
    line = difference(outputs, [x[:, SWAPPED] for x in outputs], "1 x 1")
    assert line.startswith("1 x 1: 2 detections, ")


@pytest.mark.parametrize(
    "changed, message",
    [
        (FOUND._replace(boxes=BOXES + 0.2), "boxes within 2.0e-01 pixels"),
        (FOUND._replace(scores=SCORES - 0.01), "scores within 1.0e-02"),
        (FOUND._replace(classes=CLASSES + 1), "without their like"),
        (FOUND._replace(scores=SCORES * 0), "scores within 9.0e-01"),
        (FOUND._replace(scores=SCORES[:, :2]), r"scores is \(1, 2\), not \(1, 3\)"),
        (FOUND._replace(boxes=BOXES * torch.nan), "boxes is not finite"),
        (FOUND._replace(scores=SCORES * torch.nan), "scores is not finite"),
    ],
)
def test_what_is_not_the_same(changed: Detections, message: str) -> None:
    with pytest.raises(UserError, match=f"something else than the model, at x: .*({message})"):
        difference(FOUND, changed, "x")


def test_masks_that_differ() -> None:
    masks = MASKS.masks.clone()
    masks[0, 1, :4] ^= True
    with pytest.raises(UserError, match=r"masks: 1\.0e-01 of the pixels differ"):
        difference(MASKS, MASKS._replace(masks=masks), "x")


def test_maps_that_differ() -> None:
    maps = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert "0.0e+00 of the pixels" in difference(Scores(maps), [maps + 1e-7], "x")
    for wrong, message in ((maps.flip(1), "of another class"), (maps * torch.nan, "not finite"), (maps * 1.01, "within 1.0e-02")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            difference(Scores(maps), [wrong], "x")


def test_nothing_found_is_said() -> None:
    nothing = FOUND._replace(scores=SCORES * 0)
    assert difference(nothing, nothing, "x") == "x: nothing scores 0.06 or more, which shows little"
