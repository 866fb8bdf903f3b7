"""Inference with masks made by hand, and that few masks at a time change nothing."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from comer_d2.d2.modeling import mask_inference
from comer_d2.d2.modeling.mask_inference import Frame, instances, panoptic_segments, semantic_scores

PERSON, DOG, SKY, NOTHING = range(4)
SURE = 12.0  # a logit: probability 1 - 6e-6, among zeros 1 - 2e-5


def logits(*classes: int, sure: float = SURE) -> Tensor:
    return F.one_hot(torch.tensor(classes), 4).float() * sure


def masks(*rows: str) -> Tensor:
    """Rows of # and . -> (n, 4, width) mask logits, every line of a mask the same."""
    return torch.tensor([[[SURE if c == "#" else -SURE for c in row]] * 4 for row in rows])


def frame(width: int = 8) -> Frame:
    return Frame((4, width), (4, width), (4, width))


@pytest.fixture(params=[16, 1])
def _masks_at_a_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_inference, "MASKS_AT_A_TIME", request.param)


pytestmark = pytest.mark.usefixtures("_masks_at_a_time")


def test_semantic_is_the_sum_over_queries() -> None:
    scores = semantic_scores(
        logits(PERSON, SKY, PERSON, NOTHING),
        masks("##......", "..######", "......##", "########"),
        frame(),
    )
    assert scores.shape == (3, 4, 8)
    assert scores.argmax(0)[0, :6].tolist() == [PERSON] * 2 + [SKY] * 4
    expected = torch.einsum(
        "qk,qhw->khw",
        logits(PERSON, SKY).softmax(-1)[:, :-1],
        masks("##......", "..######").sigmoid(),
    )
    torch.testing.assert_close(
        semantic_scores(logits(PERSON, SKY), masks("##......", "..######"), frame()), expected
    )


def test_padding_is_cut_off_before_the_image_is_enlarged() -> None:
    quarter = torch.randn(3, 8, 8)
    sizes = Frame(padded=(32, 32), image=(20, 28), output=(40, 56))
    found = semantic_scores(logits(PERSON, DOG, SKY), quarter, sizes)
    whole = F.interpolate(quarter[None], size=(32, 32), mode="bilinear").sigmoid()
    scores = torch.einsum("qk,qhw->khw", logits(PERSON, DOG, SKY).softmax(-1)[:, :-1], whole[0])
    expected = F.interpolate(scores[None, :, :20, :28], size=(40, 56), mode="bilinear")[0]
    torch.testing.assert_close(found, expected)


def test_instances_best_first_with_boxes() -> None:
    classes = torch.cat([logits(PERSON), logits(DOG, sure=2.0), logits(SKY), logits(PERSON)])
    found = instances(
        classes,
        masks("##......", "....###.", "########", "........"),
        frame(),
        max_instances=5,
        stuff_classes=[SKY],
    )
    assert found.image_size == (4, 8)
    assert found.pred_classes.tolist()[:2] == [PERSON, DOG]
    assert SKY not in found.pred_classes.tolist()
    assert found.pred_boxes.tensor[:2].tolist() == [[0, 0, 2, 4], [4, 0, 7, 4]]
    assert found.pred_masks.dtype == torch.bool
    assert found.pred_masks.flatten(1).any(1).all()  # the empty one is left out
    assert found.scores[0] == pytest.approx(1.0, abs=1e-4)
    assert found.scores[1] == pytest.approx(classes[1].softmax(0)[DOG].item(), abs=1e-4)


def test_instances_of_fewer_pairs_than_asked_for() -> None:
    found = instances(logits(PERSON), masks("####...."), frame(), max_instances=100)
    assert found.pred_classes.tolist() == [PERSON, DOG, SKY]


def test_no_queries_left() -> None:
    found = instances(logits(SKY), masks("#......."), frame(), stuff_classes=[0, 1, 2])
    assert len(found) == 0
    ids, info = panoptic_segments(logits(NOTHING), masks("########"), frame(), stuff_classes=[])
    assert (ids == 0).all()
    assert info == []


def test_panoptic_by_hand() -> None:
    classes = torch.cat(
        [logits(PERSON, SKY, SKY, DOG, NOTHING), logits(PERSON, sure=1.0), logits(DOG)]
    )
    rows = [
        "##........",  # a person
        "..##......",  # sky, two queries: one segment
        "....##....",
        ".....#####",  # a dog, one pixel in six shared with sky, and 5/6 or all of it its own
        "########..",  # no object
        "########..",  # a person that nobody believes in
        "..####....",  # a dog where there is sky: it wins nothing, or less than 0.8 of itself
    ]
    ids, info = panoptic_segments(classes, masks(*rows), frame(10), stuff_classes=[SKY])
    assert [segment["category_id"] for segment in info] == [PERSON, SKY, DOG]
    assert [segment["isthing"] for segment in info] == [True, False, True]
    assert [segment["id"] for segment in info] == [1, 2, 3]
    assert ids.dtype == torch.int32
    assert ids[0, [0, 1, 2, 3, 4, 6, 9]].tolist() == [1, 1, 2, 2, 2, 3, 3]


def test_pixels_without_a_clear_mask_stay_void() -> None:
    weak = masks("####....")
    weak[:, :, 4:] = -1.0  # the best there is, and below one half
    ids, _ = panoptic_segments(logits(PERSON), weak, frame(), stuff_classes=[])
    # The segment wins every pixel, and has those that its own mask covers.
    assert ids[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_few_masks_at_a_time_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(3)
    classes, quarter = torch.randn(20, 4) * 4, torch.randn(20, 5, 6) * 3
    sizes = Frame((20, 24), (19, 22), (30, 31))

    def everything() -> list[Tensor]:
        found = instances(classes, quarter, sizes, stuff_classes=[SKY])
        ids, info = panoptic_segments(
            classes, quarter, sizes, stuff_classes=[SKY], score_threshold=0.3, overlap_threshold=0.1
        )
        assert len(info) > 3
        return [semantic_scores(classes, quarter, sizes), ids, found.scores, found.pred_masks]

    first = everything()
    monkeypatch.setattr(mask_inference, "MASKS_AT_A_TIME", 7)
    for one, other in zip(first, everything(), strict=True):
        torch.testing.assert_close(one, other)


def test_instances_come_best_score_first() -> None:
    """A query whose class is surest can have the vaguest mask: the score is their product."""
    vague = masks("####....", "....####")
    vague[0] = torch.where(vague[0] > 0, 0.1, -SURE)
    both = torch.cat([logits(PERSON), logits(DOG, sure=4.0)])
    found = instances(both, vague, frame(), max_instances=2)
    assert found.pred_classes.tolist() == [DOG, PERSON]
    assert found.scores[0] > found.scores[1]
    assert found.pred_masks[:, 0].tolist() == [[False] * 4 + [True] * 4, [True] * 4 + [False] * 4]
