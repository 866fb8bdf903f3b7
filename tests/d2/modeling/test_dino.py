"""DINO and Co-DINO as Detectron2 models: what goes into the head and what comes out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from safetensors.torch import load_file
from torch import Tensor, nn

from comer_d2.d2.engine.trainer import Trainer
from comer_d2.d2.modeling.collaborative import CollaborativeHeads
from comer_d2.d2.modeling.dino import DINO
from comer_d2.heads.dino import BoxMatcher, DINOCriterion
from comer_d2.heads.dino.criterion import of_layers
from comer_d2.heads.dino.predictors import Prediction
from tests.heads.dino.tiny_dino import CHANNELS, NUM_CLASSES, STRIDES, roughen, tiny_head

ROOT = Path(__file__).parents[3]
DATA = ROOT / "tests" / "data"


class TinyBackbone(Backbone):
    """Mean colours, projected."""

    size_divisibility = 32

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.ModuleList(nn.Conv2d(3, channels, 1) for channels in CHANNELS)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        self.seen = image
        return {
            f"res{i + 3}": proj(nn.functional.avg_pool2d(image, stride))
            for i, (proj, stride) in enumerate(zip(self.proj, STRIDES, strict=True))
        }

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            f"res{i + 3}": ShapeSpec(channels=channels, stride=stride)
            for i, (channels, stride) in enumerate(zip(CHANNELS, STRIDES, strict=True))
        }


def build(collaborative: nn.Module | None = None, **change: Any) -> DINO:
    torch.manual_seed(0)
    settings = {
        "backbone": TinyBackbone(),
        "head": tiny_head(num_levels=5 if collaborative else 4),
        "criterion": DINOCriterion(matcher=BoxMatcher(), quality=collaborative is not None),
        "collaborative": collaborative,
        "pixel_mean": [120.0, 110.0, 100.0],
        "pixel_std": [50.0, 50.0, 50.0],
        "max_detections_per_image": 12,
    }
    model = DINO(**{**settings, **change})
    roughen(model)
    return model


def record(height: int, width: int, count: int = 2) -> dict[str, Any]:
    corners = torch.rand(count, 2) * 20
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.cat([corners, corners + 20 + 20 * torch.rand(count, 2)], 1))
    instances.gt_classes = torch.randint(NUM_CLASSES, (count,))
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "height": height, "width": width, "instances": instances}


@pytest.mark.parametrize("case", ["padded", "full"])
def test_detections_are_mmdetections(case: str) -> None:
    oracle = load_file(DATA / "mmdet_dino.safetensors")
    about = json.loads((DATA / "mmdet_dino.json").read_text())
    model = build(max_detections_per_image=about["max_detections"])
    for i, (height, width) in enumerate(about["sizes"][case]):
        prediction = Prediction(oracle[f"{case}.logits"][-1, i], oracle[f"{case}.boxes"][-1, i])
        scale = 1 / about["scale_factor"]
        output = {"height": round(height * scale), "width": round(width * scale)}
        found = model.detections(prediction, (height, width), output)
        assert found.image_size == (output["height"], output["width"])
        expected = {
            name: oracle[f"{case}.result.{i}.{name}"] for name in ("boxes", "scores", "labels")
        }
        torch.testing.assert_close(found.pred_boxes.tensor, expected["boxes"])
        torch.testing.assert_close(found.scores, expected["scores"])
        assert found.pred_classes.tolist() == expected["labels"].tolist()


def test_targets_are_relative_to_the_image() -> None:
    instances = Instances((50, 200))
    instances.gt_boxes = Boxes([[20.0, 10.0, 60.0, 20.0]])
    instances.gt_classes = torch.tensor([2])
    seen: list[Any] = []

    class Criterion(nn.Module):
        def forward(self, outputs: Any, targets: list[dict[str, Any]]) -> dict[str, Tensor]:
            seen.extend(targets)
            return {}

    image = torch.zeros(3, 50, 200, dtype=torch.uint8)
    build(criterion=Criterion())([{"image": image, "instances": instances, "file_name": "a.jpg"}])
    assert seen[0]["name"] == "a.jpg"
    assert seen[0]["labels"].tolist() == [2]
    torch.testing.assert_close(seen[0]["boxes"], torch.tensor([[0.2, 0.3, 0.2, 0.2]]))


def test_soft_suppression_is_an_option() -> None:
    # One box twice, for one class and for two.
    boxes = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]])
    logits = torch.tensor([[0.9, 0.1, 1e-4, 1e-4], [0.8, 0.2, 1e-4, 1e-4]]).logit()
    image = ((100, 100), {})
    plain = build().detections(Prediction(logits, boxes), *image)
    assert [round(s, 4) for s in plain.scores.tolist()[:4]] == [0.9, 0.8, 0.2, 0.1]
    soft = build(soft_nms_threshold=0.8).detections(Prediction(logits, boxes), *image)
    assert [round(s, 4) for s in soft.scores.tolist()] == [0.9, 0.2]
    assert soft.pred_classes.tolist() == [0, 1]


def test_one_image_alone_is_predicted_as_in_a_batch() -> None:
    # Sizes that the strides divide; the norms of the neck see only themselves.
    model = build().eval()
    model.head.neck.projections[3][0].weight.data.zero_()  # the one that looks across the border
    images = [record(64, 96), record(64, 96)]
    with torch.no_grad():
        together = model(images)
        alone = [model([image])[0] for image in images]
    for found, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(found["instances"].scores, expected["instances"].scores)


class Given(nn.Module):
    """Candidates as they are, as queries."""

    def __init__(self, generator: nn.Module) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, candidates: list[Any]) -> Any:
        self.candidates = candidates
        self.queries = self.generator(candidates)
        return self.queries


@pytest.fixture(scope="module")
def make_collaborative() -> Callable[[], CollaborativeHeads]:
    """The config's heads for the tiny model."""

    def make() -> CollaborativeHeads:
        cfg = LazyConfig.load(str(ROOT / "configs/common/models/codino_comer.py"))
        cfg.model.head.dim = 16
        cfg.model.head.proposals.num_classes = NUM_CLASSES
        heads = cfg.model.collaborative
        heads.norm_groups = heads.atss.num_groups = 4
        heads.roi_heads.box_head.fc_dims = [16]
        heads.roi_heads.box_predictor.input_shape.channels = 16
        strides = [8, 16, 32, 64, 128, 256]  # the tiny backbone's
        heads.proposal_generator.anchor_generator.strides = heads.atss.strides = strides
        heads.roi_heads.box_pooler.scales = [1 / stride for stride in strides[:5]]
        return instantiate(heads)

    return make


@pytest.mark.parametrize("counts", [(2, 3), (0, 3), (0, 0), (30, 1)], ids=str)
def test_codino_trains(
    make_collaborative: Callable[[], CollaborativeHeads], counts: tuple[int, int]
) -> None:
    model = build(make_collaborative()).train()
    with EventStorage():
        losses = model([record(100, 128, counts[0]), record(128, 90, counts[1])])
    names = {name for name in losses if not name.endswith(("_0", "_1"))}
    assert names == {
        *(f"loss_{kind}{of}" for kind in ("class", "bbox", "giou") for of in ("", "_enc", "_dn")),
        *(f"loss_{kind}{of}" for kind in ("class", "bbox", "giou") for of in ("_roi", "_atss")),
        *("loss_rpn_cls", "loss_rpn_loc", "loss_roi_cls", "loss_roi_box_reg"),
        *("loss_atss_cls", "loss_atss_box_reg", "loss_atss_centerness"),
    }
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_the_composition(make_collaborative: Callable[[], CollaborativeHeads]) -> None:
    heads = make_collaborative()
    heads.roi_queries, heads.atss_queries = Given(heads.roi_queries), Given(heads.atss_queries)
    model = build(heads).train()
    records = [record(128, 128, 3), record(128, 128, 1)]
    seen: list[Any] = []
    hook = model.head.register_forward_hook(lambda module, args, outputs: seen.append(outputs))
    with EventStorage():
        losses = model(records)
    hook.remove()
    (outputs,) = seen

    for suffix, given in (("_roi", heads.roi_queries), ("_atss", heads.atss_queries)):
        # The same decoder on the same memory, without a mask between the queries.
        queries = given.queries
        layers = model.head.decoder(queries.contents, queries.boxes, outputs.memory, outputs.canvas)
        for name, layer in of_layers(layers, suffix).items():
            expected = model.criterion.losses(layer, queries.targets, queries.matches, name)
            torch.testing.assert_close({key: losses[key] for key in expected}, expected)
        # Positives have the object's class and box.
        for image, candidates in zip(records, given.candidates, strict=True):
            found = image["instances"]
            positive = candidates.labels < NUM_CLASSES
            assert positive.any()
            objects = found.gt_boxes.tensor / 128
            for label, box in zip(
                candidates.labels[positive], candidates.objects[positive], strict=True
            ):
                corners = torch.cat([box[:2] - box[2:] / 2, box[:2] + box[2:] / 2])
                place = (objects - corners).abs().sum(1).argmin()
                torch.testing.assert_close(objects[place], corners)
                assert found.gt_classes[place] == label
    # ATSS: every object has positives, whose anchors' middles are inside it.
    candidates = heads.atss_queries.candidates[0]
    positive = candidates.labels < NUM_CLASSES
    away = (candidates.boxes[positive, :2] - candidates.objects[positive, :2]).abs()
    assert (away <= candidates.objects[positive, 2:] / 2).all()


def test_the_weight_is_that_of_the_collaborative_heads(
    make_collaborative: Callable[[], CollaborativeHeads],
) -> None:
    heads = make_collaborative()
    model = build(heads).train()
    records = [record(128, 128, 3)]
    results = []
    for weight in (12.0, 6.0):
        heads.weight = weight
        torch.manual_seed(5)
        with EventStorage():
            results.append(model(records))
    for name, loss in results[0].items():
        own = name.startswith(("loss_rpn", "loss_roi_", "loss_atss_"))
        torch.testing.assert_close(results[1][name], loss / 2 if own else loss, msg=name)


def test_only_dino_predicts(make_collaborative: Callable[[], CollaborativeHeads]) -> None:
    model = build(make_collaborative()).eval()
    image = record(100, 128)
    with torch.no_grad():
        (first,) = model([image])
        model.collaborative = None
        (second,) = model([image])
    assert torch.equal(first["instances"].scores, second["instances"].scores)


def test_masks_do_not_reach_the_proposals(
    make_collaborative: Callable[[], CollaborativeHeads],
) -> None:
    heads = make_collaborative()
    model = build(heads).train()
    given = record(128, 128, 2)
    given["instances"].gt_masks = BitMasks(torch.ones(2, 128, 128))
    seen: list[Any] = []
    heads.roi_heads.register_forward_hook(lambda module, args, result: seen.extend(result[0]))
    with EventStorage():
        model([given])
    assert seen
    assert not any(found.has("gt_masks") for found in seen)


def test_padding_is_not_an_anchor(make_collaborative: Callable[[], CollaborativeHeads]) -> None:
    heads = make_collaborative()
    heads.atss_queries = Given(heads.atss_queries)
    model = build(heads).train()
    with EventStorage():
        model([record(64, 128, 1), record(128, 128, 1)])
    small, whole = heads.atss_queries.candidates
    assert len(small.labels) < len(whole.labels)
    assert (small.boxes[:, :2] < 1).all()


class OfMatchedQueries(DINOCriterion):
    """Without the denoising, whose groups depend on the images that come together."""

    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        losses = super().forward(*arguments)
        return {name: loss for name, loss in losses.items() if "_dn" not in name}


def gradients(batches: list[list[dict[str, Any]]]) -> dict[str, Tensor | None]:
    """Of one update by the Trainer."""
    model = build(criterion=OfMatchedQueries(matcher=BoxMatcher()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    steps = len(batches)
    Trainer(model, batches, optimizer, device_type="cpu", accumulation_steps=steps).train(0, 1)
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("counts", [(1, 3, 5), (0, 11)])
def test_accumulated_batches_of_unequal_counts_equal_one_large_batch(counts: list[int]) -> None:
    """The losses are divided by the objects of a batch (11: more than queries)."""
    records = [record(64, 64, count) for count in counts]
    accumulated = gradients([[record] for record in records])
    for name, gradient in gradients([records]).items():
        torch.testing.assert_close(accumulated[name], gradient, msg=name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_detections_per_image": 0}, "max_detections_per_image must be at least 1, got 0"),
        ({"soft_nms_threshold": 2.0}, r"IoU in \(0, 1\] or None, got 2"),
        ({"head": tiny_head(channels=(4, 6, 9))}, r"in_channels \[4, 6, 9\]; .* 'res5': 8"),
    ],
    ids=["detections", "threshold", "channels"],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**change)


def test_collaborative_heads_on_other_strides_are_refused(
    make_collaborative: Callable[[], CollaborativeHeads],
) -> None:
    """They would train, on boxes that are elsewhere."""
    heads = make_collaborative()
    heads.atss.strides = (4, 8, 16, 32, 64, 128)
    with pytest.raises(ValueError, match=r"atss\.strides must be \[8, 16, .*\], got \[4, 8, "):
        build(heads)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_codino_under_autocast(
    make_collaborative: Callable[[], CollaborativeHeads], dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = build(make_collaborative()).train()
    with torch.autocast("cpu", dtype), EventStorage():
        losses = model([record(100, 128, 2), record(128, 90, 0)])
    assert all(loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    infinite = [name for name, p in model.named_parameters() if not p.grad.isfinite().all()]
    assert not infinite


def test_codino_under_activation_checkpointing(
    make_collaborative: Callable[[], CollaborativeHeads],
) -> None:
    results = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = build(make_collaborative()).train()
        for part in (model.head.encoder, model.head.decoder):
            part.use_act_checkpoint = checkpointing
        torch.manual_seed(1)  # of the images, and of the samples that the losses draw
        with EventStorage():
            losses = model([record(100, 128), record(128, 90, 3)])
        sum(losses.values()).backward()
        results.append((losses, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[1], results[0])
