"""ATSS and GFL against MMDetection 3.3's own ATSSHead, GFLHead and ATSSAssigner.

tests/data/mmdet_{atss,gfl,atss_assigner}.safetensors hold MMDetection's numbers, computed in float32
on a CPU. Its heads, as its configs/{atss,gfl}/*_r50_fpn_1x_coco.py set them up, were made small (4
classes, 8 channels, 2 convolutions a subnet, 4 groups; GFL's largest distance 3, less than some
targets) and given random weights; weights, maps and boxes are float16 numbers. The batch has two
images of 128 x 160 and 90 x 120 pixels, the second padded to 96 x 128 by itself. There are the raw
predictions of the four coarser levels, every loss for three pairs of objects, gradients of their sum,
and what its predict_by_feat keeps with 60 candidates a level and 40 detections an image. The assigner
has five scenes on anchors of strides 8 to 128, one of boxes on the grid, with many equal distances.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from comer_d2.heads.atss import ATSSHead, centerness_of
from comer_d2.heads.atss_assigner import assign_atss
from comer_d2.heads.box_coding import decode_deltas
from comer_d2.heads.dense_anchors import square_anchors
from comer_d2.heads.dense_inference import detect
from comer_d2.heads.detections import Detections
from comer_d2.heads.generalized_focal_loss import distribution_focal_loss, quality_focal_loss
from comer_d2.heads.gfl import GFLHead
from tests.device import autocast, load_numbers

DATA = Path(__file__).parents[1] / "data"
TINY = dict(num_classes=4, in_channels=8, channels=8, num_convs=2, num_groups=4)
HEADS = {"atss": lambda: ATSSHead(**TINY), "gfl": lambda: GFLHead(**TINY, reg_max=3)}
# Names of modules and losses: MMDetection's -> here.
MODULES = {
    **{
        f"{old}_convs.{i}.{part}": f"{new}_subnet.{i}.{name}"
        for i in range(2)
        for old, new in (("cls", "cls"), ("reg", "bbox"))
        for part, name in (("conv", "conv"), ("gn", "norm"))
    },
    **{f"scales.{i}.scale": f"scales.{i}" for i in range(5)},
    **{
        f"{head}_{old}": new
        for head in HEADS
        for old, new in (("cls", "cls_score"), ("reg", "bbox_pred"), ("centerness", "centerness"))
    },
}
LOSSES = {
    "loss_cls": "loss_cls",
    "loss_bbox": "loss_box_reg",
    "loss_centerness": "loss_centerness",
    "loss_dfl": "loss_dfl",
}
IMAGE_SIZES = [(128, 160), (96, 128)]  # padded to what divides by 32
CLIP_SIZES = [(128, 160), (90, 120)]
# Around no point of a grid, nor halfway: of equally near anchors, a GPU chooses others than a CPU.
OBJECTS = [
    {
        "boxes": torch.tensor(
            [
                [4.25, 6, 40.5, 50.75],
                [30, 20.5, 90.75, 101],
                [0, 0, 158.5, 127.25],
                [100, 90, 112.75, 99.5],
                [28, 20, 92.25, 102.5],
            ]
        ),
        "labels": torch.tensor([0, 3, 1, 2, 2]),
    },
    {
        "boxes": torch.tensor([[10.25, 12.5, 71, 81.75], [60, 8, 118.75, 60.5]]),
        "labels": torch.tensor([1, 0]),
    },
]
NOTHING = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.long)}
CASES = {"both": OBJECTS, "first": [OBJECTS[0], NOTHING], "none": [NOTHING, NOTHING]}


def renamed(name: str) -> str:
    """MMDetection's name of a parameter -> the one here."""
    if name in MODULES:
        return MODULES[name]
    module, _, leaf = name.rpartition(".")
    return f"{MODULES[module]}.{leaf}"


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@pytest.fixture(params=HEADS)
def oracle(request: pytest.FixtureRequest) -> tuple[nn.Module, list[Tensor], dict[str, Tensor]]:
    """The head with MMDetection's weights, its maps, and MMDetection's numbers."""
    numbers = load_numbers(DATA / f"mmdet_{request.param}.safetensors")
    head = HEADS[request.param]()
    weights = under("weight.", numbers)
    head.load_state_dict({renamed(n): t.float() for n, t in weights.items()}, strict=True)
    maps = [numbers[f"map.{i}"].float().requires_grad_() for i in range(5)]
    return head, maps, numbers


def test_predictions(oracle: tuple) -> None:
    head, maps, numbers = oracle
    for i, level in enumerate(head(maps)):
        for kind, values in zip(("logits", "boxes", "centerness"), level):
            if i > 0:  # of the finest, gradients and detections tell
                torch.testing.assert_close(values, numbers[f"{kind}.{i}"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_losses(oracle: tuple, case: str) -> None:
    head, maps, numbers = oracle
    losses = head.losses(head(maps), CASES[case], IMAGE_SIZES)
    expected = {n: v for n, v in under(f"{case}.", numbers).items() if n in LOSSES}
    assert len(expected) == len(losses) == 3
    for name, value in expected.items():
        torch.testing.assert_close(losses[LOSSES[name]], value[0], atol=1e-5, rtol=2e-5)


@pytest.mark.parametrize("case", ["both", "none"])
def test_gradients(oracle: tuple, case: str) -> None:
    """Of the losses' sum, with respect to every parameter and to the maps; none is missing."""
    head, maps, numbers = oracle
    sum(head.losses(head(maps), CASES[case], IMAGE_SIZES).values()).backward()
    gradients = {name: p.grad for name, p in head.named_parameters()}
    gradients |= {f"map.{i}": x.grad for i, x in enumerate(maps)}
    expected = under(f"{case}.grad.", numbers)
    assert len(expected) >= len(gradients) - 5
    for name, value in expected.items():
        found = gradients[name if name.startswith("map.") else renamed(name)]
        scale = max(float(value.abs().max()), 1e-3)
        torch.testing.assert_close(found, value, atol=2e-5 * scale, rtol=1e-4)


def test_detections(oracle: tuple) -> None:
    head, maps, numbers = oracle
    with torch.no_grad():
        levels = head.decode(head(maps))
    for i, size in enumerate(CLIP_SIZES):
        found = detect(
            [level.of_image(i) for level in levels],
            size,
            score_threshold=0.05,
            candidates_per_level=60,
            nms_threshold=0.6,
            max_detections=40,
        )
        taken = found.classes[0] >= 0
        found = Detections(*(values[0, taken] for values in found))
        assert torch.equal(found.classes, numbers[f"detections.{i}.labels"])
        assert len(found.classes.unique()) > 1
        torch.testing.assert_close(
            found.scores, numbers[f"detections.{i}.scores"], atol=1e-6, rtol=1e-5
        )
        torch.testing.assert_close(
            found.boxes, numbers[f"detections.{i}.boxes"], atol=1e-3, rtol=1e-5
        )


ON_THE_GRID = pytest.param(3, marks=pytest.mark.cpu)  # which of equally near anchors is its choice


@pytest.mark.parametrize("scene", [0, 1, 2, ON_THE_GRID, 4])
def test_assignments(scene: int) -> None:
    numbers = load_numbers(DATA / "mmdet_atss_assigner.safetensors")
    maps = [torch.empty(h, w) for h, w in ((25, 32), (13, 16), (7, 8), (4, 4), (2, 2))]
    anchors = [a.flatten(0, 1) for a in square_anchors(maps, (8, 16, 32, 64, 128), 8.0)]
    assigned = assign_atss(anchors, numbers[f"boxes.{scene}"].float())
    assert torch.equal(assigned, numbers[f"assigned.{scene}"].long())
    assert bool((assigned >= 0).any()) == (scene > 0)  # a thin box around no center


def test_an_image_of_one_cell_a_level() -> None:
    anchors = [
        a.flatten(0, 1) for a in square_anchors([torch.empty(1, 1)] * 5, (8, 16, 32, 64, 128), 8.0)
    ]
    assigned = assign_atss(anchors, torch.tensor([[-44.0, -44, 44, 44]]))
    # IoU of 0.529, 0.473, 0.118, 0.030 and 0.007: their mean and deviation, with n - 1, add up to
    # 0.482 (with n: 0.455).
    assert assigned.tolist() == [0, -1, -1, -1, -1]


def test_quality_focal_loss_is_its_formula() -> None:
    logits = torch.linspace(-4, 4, 9, dtype=torch.float64, requires_grad=True)
    quality = torch.tensor([0, 0.1, 0.2, 0.5, 0.9, 1, 0, 0.7, 0], dtype=torch.float64)
    p = logits.sigmoid()
    expected = -((1 - quality) * (1 - p).log() + quality * p.log()) * (quality - p).abs() ** 2
    torch.testing.assert_close(quality_focal_loss(logits, quality), expected)
    assert torch.autograd.gradcheck(lambda x: quality_focal_loss(x, quality, beta=1.5), [logits])


def test_distribution_focal_loss_is_least_at_the_target() -> None:
    """With log probabilities at hand: 0.75 at 2 and 0.25 at 3 is the distribution of 2.25."""
    probability = torch.tensor([1e-9, 1e-9, 0.75, 0.25, 1e-9], dtype=torch.float64)
    loss = distribution_focal_loss(probability.log(), torch.tensor(2.25, dtype=torch.float64))
    expected = -(0.75 * probability[2].log() + 0.25 * probability[3].log())
    torch.testing.assert_close(loss, expected)
    logits = torch.randn(3, 4, 8, dtype=torch.float64, requires_grad=True)
    distances = torch.rand(3, 4, dtype=torch.float64) * 6.9
    assert torch.autograd.gradcheck(lambda x: distribution_focal_loss(x, distances), [logits])


def test_deltas_change_sides_by_at_most_62_5() -> None:
    """The box keeps its center, 20 + 0.1 * 0.5 * 40 and 30 + 0."""
    anchor = torch.tensor([0.0, 10, 40, 50])
    boxes = decode_deltas(torch.tensor([0.5, 0, 100, -100]), anchor, (0.1, 0.1, 0.2, 0.2))
    expected = [22 - 20 * 62.5, 30 - 20 / 62.5, 22 + 20 * 62.5, 30 + 20 / 62.5]
    torch.testing.assert_close(boxes, torch.tensor(expected))


def test_centerness() -> None:
    boxes = torch.tensor([[0.0, 0, 8, 4]] * 3)
    points = torch.tensor([[4.0, 2], [2, 2], [2, 1]])
    torch.testing.assert_close(
        centerness_of(points, boxes), torch.tensor([1, (1 / 3) ** 0.5, 1 / 3])
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(oracle: tuple, dtype: torch.dtype) -> None:
    """Convolutions in half precision, losses in float32: near the losses of float32."""
    head, maps, _ = oracle
    with autocast(dtype):
        predictions = head(maps)
        losses = head.losses(predictions, OBJECTS, IMAGE_SIZES)
        levels = head.decode(predictions)
    assert predictions[0].logits.dtype == dtype
    assert levels[0].boxes.dtype == levels[0].scores.dtype == torch.float32
    # What was predicted is decoded in float32: the coarsest cells are 128 pixels.
    for level, in_full in zip(levels, head.decode(predictions), strict=True):
        torch.testing.assert_close(level.boxes, in_full.boxes, rtol=0, atol=1e-3)
    for name, loss in head.losses(head(maps), OBJECTS, IMAGE_SIZES).items():
        assert losses[name].dtype == torch.float32
        torch.testing.assert_close(losses[name], loss, rtol=0.03, atol=0)
    sum(losses.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_padding_learns_nothing(oracle: tuple) -> None:
    """Predictions beyond an image's own size do not change its losses."""
    head, maps, _ = oracle
    predictions = head(maps)
    losses = head.losses(predictions, OBJECTS, IMAGE_SIZES)
    height, width = IMAGE_SIZES[1]
    for level, stride in zip(predictions, head.strides):
        for values in level:
            values.data[1, :, -(-height // stride) :] = 7.0
            values.data[1, :, :, -(-width // stride) :] = 7.0
    for name, loss in head.losses(predictions, OBJECTS, IMAGE_SIZES).items():
        assert torch.equal(loss, losses[name])


@pytest.mark.parametrize(
    ("head", "change"), [(ATSSHead, "top_k"), (GFLHead, "top_k"), (GFLHead, "reg_max")]
)
def test_heads_that_could_not_learn_are_refused(head: type[nn.Module], change: str) -> None:
    with pytest.raises(ValueError, match=f"{change} must be at least 1, got 0"):
        head(**TINY, **{change: 0})
