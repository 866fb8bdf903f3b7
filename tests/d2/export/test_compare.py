"""What counts as the same: in any order, with what rounding does, and nothing else."""

import pytest
import torch

from comer_d2.d2.errors import UserError
from comer_d2.d2.export.compare import difference
from comer_d2.d2.export.panoptic import Segments
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


def test_detections_in_the_last_place_are_chance() -> None:
    """Where all places are taken, another that scores like the last can have its place."""
    full = Detections(BOXES, torch.tensor([[0.9, 0.8, 0.3]]), torch.tensor([[2, 1, 0]]))
    boxes, classes = BOXES.clone(), torch.tensor([[2, 1, 4]])
    boxes[0, 2] = 50
    other = Detections(boxes, full.scores + 1e-6, classes)
    assert difference(full, other, "x").startswith("x: 2 detections, ")
    more = [torch.cat([x, torch.zeros_like(x[:, :1])], dim=1) for x in full]
    others = [torch.cat([x, torch.zeros_like(x[:, :1])], dim=1) for x in other]
    with pytest.raises(UserError, match="without their like"):
        difference(Detections(*more), others, "x")


def segments() -> Segments:
    """A sky of class 3 in the upper half, an object of class 1 below, nothing around it."""
    ids = torch.zeros(1, 40, 40, dtype=torch.int64)
    ids[0, :20], ids[0, 25:35, 5:15] = 1, 2
    return Segments(ids, torch.tensor([[0.9, 0.8, 0]]), torch.tensor([[3, 1, -1]]))


def test_segments_under_other_numbers() -> None:
    """A query at its threshold comes and goes, and moves the numbers of those behind it."""
    ours = segments()
    ids = torch.tensor([0, 2, 1])[ours.panoptic_seg]
    ids[0, 39, 39] = 3
    theirs = [ids, torch.tensor([[0.8, 0.9, 0.5]]), torch.tensor([[1, 3, 0]])]
    assert difference(ours, theirs, "x").startswith(
        "x: 2 segments, 6.2e-04 of the pixels in others"
    )


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("segment_scores", torch.tensor([[0.9, 0.7, 0]]), "scores within 1.0e-01"),
        ("segment_classes", torch.tensor([[3, 2, -1]]), "6.2e-02 of the pixels"),
        ("panoptic_seg", segments().panoptic_seg.clamp(max=1), "6.2e-02 of the pixels"),
        ("panoptic_seg", segments().panoptic_seg * 0, "5.6e-01 of the pixels"),
    ],
)
def test_segments_that_differ(name: str, value: torch.Tensor, message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        difference(segments(), segments()._replace(**{name: value}), "x")


def test_an_image_without_segments() -> None:
    nothing = Segments(torch.zeros(1, 4, 4, dtype=torch.int64), torch.zeros(1, 2), torch.full((1, 2), -1))  # fmt: skip
    assert difference(nothing, nothing, "x") == "x: no segments, which shows little"
