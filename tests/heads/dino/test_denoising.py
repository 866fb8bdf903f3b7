"""Noisy copies of the objects."""

import torch
from torch import Tensor
from torchvision.ops import box_convert

from comer_d2.heads.dino import DenoisingGenerator
from tests.heads.dino.tiny_dino import NUM_CLASSES, tiny_target


def generator(num_queries: int = 100, **options: float) -> DenoisingGenerator:
    return DenoisingGenerator(dim=16, num_classes=NUM_CLASSES, num_queries=num_queries, **options)


def test_groups_fill_the_number_of_queries() -> None:
    for counts, groups in ([[3, 1], 33], [[100], 1], [[130, 2], 1], [[1], 100], [[0, 0], 100]):
        queries = generator()([tiny_target(count) for count in counts])
        objects = max(1, *counts)
        assert (queries.num_groups, queries.group_size) == (groups, 2 * objects)
        assert queries.contents.shape == (len(counts), groups * 2 * objects, 16)
        assert queries.boxes.shape == (len(counts), groups * 2 * objects, 4)


def test_corners_move_by_less_than_half_a_side_or_at_least_so_far() -> None:
    box = torch.tensor([[0.5, 0.5, 0.2, 0.1]])  # far from the border: nothing is clamped
    queries = generator(1000, box_noise=0.8)([{"labels": torch.tensor([1]), "boxes": box}])
    boxes = queries.boxes.view(-1, 2, 4)
    moves = (box_convert(boxes, "cxcywh", "xyxy") - box_convert(box, "cxcywh", "xyxy")).abs()
    limit = 0.8 * torch.tensor([0.1, 0.05, 0.1, 0.05])
    # A box that is turned inside out has its smallest side instead; leave those out.
    upright = (boxes[..., 2:] > 0.002).all(-1)
    positive, negative = (moves[:, i][upright[:, i]] / limit for i in (0, 1))
    assert 0.9 < positive.max() < 1 + 1e-5
    assert positive.min() < 0.1
    assert 1 - 1e-5 < negative.min() < 1.1
    assert 1.9 < negative.max() < 2 + 1e-5


def test_half_of_the_noise_share_of_labels_is_drawn_anew() -> None:
    labels = torch.ones(1, 2000, 2, 1, dtype=torch.int64)
    noisy = generator(label_noise=0.5).noisy_labels(labels)
    assert set(noisy.unique().tolist()) == set(range(NUM_CLASSES))
    # A quarter is drawn anew, a quarter of which comes out as before.
    assert abs((noisy != 1).float().mean() - 0.25 * 0.75) < 0.02
    assert torch.equal(generator(label_noise=0.0).noisy_labels(labels), labels)


def test_who_sees_whom() -> None:
    queries = generator(2)([tiny_target(1)])
    assert (queries.num_groups, queries.group_size) == (2, 2)
    seen = queries.allowed(num_queries=1).int().tolist()
    assert seen == [
        [1, 1, 0, 0, 1],
        [1, 1, 0, 0, 1],
        [0, 0, 1, 1, 1],
        [0, 0, 1, 1, 1],
        [0, 0, 0, 0, 1],
    ]


def test_positives_of_all_groups_are_matched() -> None:
    queries = generator(6)([tiny_target(3), tiny_target(1), tiny_target(0)])
    assert (queries.num_groups, queries.group_size) == (2, 6)
    found = [[x.tolist() for x in pair] for pair in queries.matches([3, 1, 0])]
    assert found == [[[0, 1, 2, 6, 7, 8], [0, 1, 2, 0, 1, 2]], [[0, 6], [0, 0]], [[], []]]


def test_images_with_fewer_objects_are_filled_with_nothing() -> None:
    draw = generator(4)
    queries = draw([tiny_target(2), tiny_target(1)])
    empty = queries.contents[1].view(2, 2, 2, 16)[:, :, 1]
    assert (empty == 0).all()
    assert (queries.boxes[1].view(2, 2, 2, 4)[:, :, 1] == 0.5).all()
    assert (queries.contents[0] != 0).any(-1).all()
    queries.contents.sum().backward()
    assert draw.label_embed.weight.grad is not None


def test_no_object_at_all_still_has_a_gradient() -> None:
    draw = generator()
    queries = draw([tiny_target(0), tiny_target(0)])
    queries.contents.sum().backward()
    gradient: Tensor = draw.label_embed.weight.grad
    assert (gradient == 0).all()
