"""Costs, matches and losses that one can compute by hand, and batches that are none."""

import math
from types import SimpleNamespace

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from comer_d2.heads.dino import BoxMatcher, DINOCriterion
from comer_d2.heads.dino.predictors import Prediction
from tests.heads.dino.tiny_dino import roughen, tiny_features, tiny_head, tiny_target
from tests.remote import RemoteDevice, remote

BOX = [0.5, 0.5, 0.2, 0.2]
OFF = [0.6, 0.5, 0.2, 0.2]  # half of it inside BOX: IoU 1/3, as is the generalized IoU


def prediction(probabilities: list[list[float]], boxes: list[list[float]]) -> Prediction:
    return Prediction(torch.tensor([probabilities]).logit(), torch.tensor([boxes]))


def target(label: int = 1) -> dict[str, Tensor]:
    return {"labels": torch.tensor([label]), "boxes": torch.tensor([BOX])}


def test_cost() -> None:
    logits, boxes = prediction([[0.1, 0.8], [0.1, 0.3]], [OFF, BOX])
    cost = BoxMatcher().cost(logits[0], boxes[0], target())

    def focal(p: float) -> float:
        return -0.25 * (1 - p) ** 2 * math.log(p) + 0.75 * p**2 * math.log(1 - p)

    expected = [2 * focal(0.8) + 5 * 0.1 - 2 / 3, 2 * focal(0.3) - 2]
    assert cost[:, 0].tolist() == pytest.approx(expected, abs=1e-5)
    (((queries, objects),),) = BoxMatcher()([Prediction(logits, boxes)], [target()])
    assert (queries.tolist(), objects.tolist()) == ([1], [0])


@pytest.mark.parametrize("quality", [False, True])
def test_losses(quality: bool) -> None:
    criterion = DINOCriterion(matcher=BoxMatcher(), quality=quality)
    matches = [(torch.tensor([0]), torch.tensor([0]))]
    losses = criterion.losses(
        prediction([[0.1, 0.8], [0.1, 0.3]], [OFF, BOX]), [target()], matches, "_x"
    )

    def negative(p: float) -> float:
        return -(p**2) * math.log(1 - p) * (1 if quality else 0.75)

    positive = -0.25 * 0.2**2 * math.log(0.8)
    if quality:  # the IoU is to be predicted
        positive = (0.8 - 1 / 3) ** 2 * -(math.log(0.8) / 3 + 2 * math.log(0.2) / 3)
    expected = {
        "loss_class_x": positive + negative(0.1) + negative(0.1) + negative(0.3),
        "loss_bbox_x": 5 * 0.1,
        "loss_giou_x": 2 * (1 - 1 / 3),
    }
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4)


def test_losses_are_of_one_object_on_average() -> None:
    criterion = DINOCriterion(matcher=BoxMatcher())
    once = prediction([[0.1, 0.8]], [OFF])
    twice = Prediction(*(x.expand(2, *x.shape[1:]) for x in once))
    match = (torch.tensor([0]), torch.tensor([0]))
    first = criterion.losses(once, [target()], [match])
    second = criterion.losses(twice, [target()] * 2, [match] * 2)
    for name, loss in first.items():
        torch.testing.assert_close(second[name], loss)


def step(
    counts: list[int], num_queries: int = 8, size: tuple[int, int] = (64, 96), **options: object
) -> tuple[dict[str, Tensor], torch.nn.Module]:
    """Losses of a training step after its backward pass, and the head."""
    head = tiny_head(num_queries=num_queries, **options).train()
    roughen(head)
    targets = [tiny_target(count) for count in counts]
    outputs = head(tiny_features(*size, len(counts)), size, [(60, 96), (64, 70)], targets)
    losses = DINOCriterion(matcher=BoxMatcher())(outputs, targets)
    sum(losses.values()).backward()
    return losses, head


# 64 x 96 pixels have 129 tokens, 32 x 32 have 22.
@pytest.mark.parametrize(
    "case",
    [
        {"counts": [2, 3]},
        {"counts": [0, 3]},
        {"counts": [0, 0]},
        {"counts": [12, 1]},
        {"counts": [1, 2], "num_queries": 200},
        {"counts": [150, 1], "num_queries": 200},
    ],
    ids=str,
)
def test_any_number_of_objects_and_queries(case: dict) -> None:
    losses, head = step(**case)
    assert len(losses) == 3 * (3 + 3 + 1)
    assert all(loss.isfinite() for loss in losses.values())
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name  # or DistributedDataParallel would wait
        assert parameter.grad.isfinite().all(), name
    if case["counts"] == [0, 0]:
        assert all(loss == 0 for name, loss in losses.items() if "class" not in name)


def test_more_objects_than_queries_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    matcher = BoxMatcher()
    many = {**tiny_target(9), "name": "crowd.jpg"}
    for _ in range(2):
        (matches,) = matcher([Prediction(torch.randn(1, 6, 4), torch.rand(1, 6, 4))], [many])
    assert len(matches[0][0]) == 6
    assert sum("crowd.jpg has 9 objects" in r.getMessage() for r in caplog.records) <= 1


def test_every_prediction_is_matched_anew() -> None:
    layers = [Prediction(torch.randn(1, 5, 4), torch.rand(1, 5, 4)) for _ in range(3)]
    outputs = SimpleNamespace(
        layers=layers[:2],
        proposals=layers[2],
        denoised=layers[:1],
        denoising=SimpleNamespace(matches=lambda counts: [(torch.arange(2), torch.arange(2))]),
    )
    losses = DINOCriterion(matcher=BoxMatcher())(outputs, [tiny_target(2)])
    assert {n.removeprefix("loss_class") for n in losses if n.startswith("loss_class")} == {
        "",
        "_0",
        "_enc",
        "_dn",
    }


def test_matches_are_those_of_every_prediction_and_image_alone() -> None:
    """Costs are computed for all predictions of an image at once, and copied for all images at once."""
    targets = [tiny_target(count) for count in (3, 0, 7)]
    layers = [Prediction(torch.randn(3, q, 4), torch.rand(3, q, 4)) for q in (5, 5, 6)]
    matcher = BoxMatcher()
    found = list(matcher(layers, targets))
    assert len(found) == len(layers)
    for (logits, boxes), matches in zip(layers, found, strict=True):
        for i, wanted in enumerate(targets):
            cost = matcher.cost(logits[i], boxes[i], wanted)
            queries, objects = linear_sum_assignment(cost.cpu().numpy())
            assert matches[i][0].tolist() == queries.tolist()
            assert matches[i][1].tolist() == objects.tolist()


@pytest.mark.cpu  # which pretends to be a device
def test_the_host_waits_once_for_all_predictions_and_images() -> None:
    layers = [Prediction(torch.randn(2, 5, 4), torch.rand(2, 5, 4)) for _ in range(3)]
    denoising = SimpleNamespace(matches=lambda counts: [(torch.arange(n),) * 2 for n in counts])
    outputs = SimpleNamespace(
        layers=layers[:2], proposals=layers[2], denoised=layers[:1], denoising=denoising
    )
    targets = [tiny_target(2), tiny_target(0)]
    criterion = DINOCriterion(matcher=BoxMatcher(), quality=True)
    expected = criterion(outputs, targets)
    with RemoteDevice() as device:
        there = SimpleNamespace(
            layers=remote(layers[:2]),
            proposals=remote(layers[2]),
            denoised=remote(layers[:1]),
            denoising=denoising,
        )
        losses = criterion(there, remote(targets))
        assert len(device.waits) == 1, device.waits
        assert {k: v.item() for k, v in losses.items()} == {
            k: v.item() for k, v in expected.items()
        }
