"""Queries made of other heads' positives."""

import torch

from comer_d2.heads.dino.boxes import encode_boxes
from comer_d2.heads.dino.collaborative import Candidates, CollaborativeGenerator

BACKGROUND = 3


def candidates(labels: list[int]) -> Candidates:
    """Boxes and objects that tell which is which."""
    at = torch.arange(len(labels)).float()[:, None] / 1000
    boxes = torch.cat([at + 0.2, at + 0.3, torch.full((len(labels), 2), 0.1)], dim=1)
    return Candidates(boxes, torch.tensor(labels, dtype=torch.int64), boxes + 0.05)


def generator(**options: int) -> CollaborativeGenerator:
    return CollaborativeGenerator(dim=16, num_classes=BACKGROUND, **options)


def test_positives_first_then_background() -> None:
    images = [candidates([3, 0, 3, 2, 3, 3]), candidates([3, 3, 3, 1, 3])]
    queries = generator(least_queries=2)(images)
    assert queries.boxes.shape == (2, 2, 4)  # as many as the positives of the first image
    assert sorted(queries.targets[0]["labels"].tolist()) == [0, 2]
    assert queries.targets[1]["labels"].tolist() == [1]
    assert queries.matches[1][0].tolist() == [0]
    for image, boxes, target, (matched, objects) in zip(
        images, queries.boxes, queries.targets, queries.matches, strict=True
    ):
        assert objects.tolist() == list(range(len(matched)))
        # A positive's target is the object that the other head assigned to that very box.
        torch.testing.assert_close(target["boxes"], boxes[matched] + 0.05)
        for box, label in zip(boxes[matched], target["labels"], strict=True):
            (place,) = (image.boxes == box).all(-1).nonzero()
            assert image.labels[place] == label


def test_at_least_and_at_most() -> None:
    queries = generator(least_queries=4)([candidates([0, 3, 3, 3, 3])])
    assert queries.boxes.shape[1] == 4
    assert len(queries.matches[0][0]) == 1
    many = candidates([0] * 20 + [3])
    queries = generator(least_queries=1, most_queries=7)([many])
    assert queries.boxes.shape[1] == 7
    assert len(queries.matches[0][0]) == 7
    others = generator(least_queries=1, most_queries=7)([many])
    assert not torch.equal(queries.boxes, others.boxes)  # drawn at random


def test_too_few_candidates_are_repeated() -> None:
    queries = generator(least_queries=5)([candidates([1, 3])])
    assert queries.matches[0][0].tolist() == [0, 2, 4]
    assert queries.targets[0]["labels"].tolist() == [1, 1, 1]
    (nothing,) = generator(least_queries=3)([candidates([])]).matches
    assert len(nothing[0]) == 0


def test_contents_come_from_the_boxes_alone() -> None:
    draw = generator(least_queries=1)
    beyond = Candidates(torch.tensor([[0.5, 0.5, 1.4, 0.2]]), torch.tensor([0]), torch.rand(1, 4))
    queries = draw([beyond])
    assert queries.boxes[0, 0].tolist() == beyond.boxes[0].tolist()
    encoded = encode_boxes(torch.tensor([0.5, 0.5, 1.0, 0.2]), 8)
    torch.testing.assert_close(queries.contents[0, 0], draw.norm(draw.proj(encoded)))
