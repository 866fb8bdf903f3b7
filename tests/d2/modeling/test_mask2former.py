"""The meta-architecture: what it hands to head and criterion, and what it gives back."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from detectron2.structures import BitMasks, Instances, PolygonMasks
from torch import Tensor, nn

from comer_d2.d2.engine.trainer import Trainer
from comer_d2.d2.modeling.eomt import EoMTBackbone
from comer_d2.d2.modeling.mask2former import Mask2Former
from comer_d2.d2.modeling.semantic_tta import SemanticViews
from comer_d2.heads.criterion import SetCriterion
from comer_d2.heads.matcher import HungarianMatcher
from comer_d2.network import ViT

NUM_CLASSES, NUM_QUERIES = 3, 5


class QuarterBackbone(Backbone):
    """The mean colour of every 4 x 4 pixels."""

    size_divisibility = 32

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        self.seen = image
        return {"res2": nn.functional.avg_pool2d(image, 4)}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {"res2": ShapeSpec(channels=3, stride=4)}


class Head(nn.Module):
    num_queries = NUM_QUERIES

    def __init__(self) -> None:
        super().__init__()
        self.classes = nn.Parameter(torch.randn(NUM_QUERIES, NUM_CLASSES + 1) * 3)
        self.masks = nn.Conv2d(3, NUM_QUERIES, 1)

    def forward(self, features: dict[str, Tensor]) -> dict[str, Any]:
        masks = self.masks(features["res2"])
        return {
            "pred_logits": self.classes.expand(len(masks), -1, -1),
            "pred_masks": masks,
            "aux_outputs": [],
        }


class Criterion(nn.Module):
    def forward(
        self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        self.targets = targets
        return {"loss_mask": outputs["pred_masks"].mean()}


def build(**change: Any) -> Mask2Former:
    settings = {
        "backbone": QuarterBackbone(),
        "sem_seg_head": Head(),
        "criterion": Criterion(),
        "pixel_mean": [10.0, 20.0, 30.0],
        "pixel_std": [2.0, 2.0, 2.0],
    }
    return Mask2Former(**{**settings, **change})


def image(height: int, width: int) -> Tensor:
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8)


def test_label_maps_become_one_mask_for_each_class() -> None:
    labels = torch.full((40, 50), 255)
    labels[:10], labels[20:30, :5] = 2, 0
    model = build()
    losses = model(
        [
            {"image": image(40, 50), "sem_seg": labels},
            {"image": image(64, 33), "sem_seg": torch.full((64, 33), 255)},
        ]
    )
    assert set(losses) == {"loss_mask"}
    first, second = model.criterion.targets
    assert first["labels"].tolist() == [0, 2]
    assert first["masks"].shape == (2, 64, 64)  # as the batch is padded
    assert first["masks"].sum((1, 2)).tolist() == [50, 500]
    assert first["masks"].dtype == torch.bool
    assert second["labels"].tolist() == []
    assert second["masks"].shape == (0, 64, 64)


def test_images_are_normalised_and_padded_with_zeros() -> None:
    model = build()
    picture = image(40, 50)
    model([{"image": picture, "sem_seg": torch.zeros(40, 50, dtype=torch.int64)}])
    seen = model.backbone.seen
    assert seen.shape == (1, 3, 64, 64)
    torch.testing.assert_close(seen[0, 1, :40, :50], (picture[1] - 20.0) / 2)
    assert (seen[..., 40:, :] == 0).all()


def test_instances_of_every_kind_of_mask() -> None:
    model = build()
    bits = Instances((40, 50))
    bits.gt_classes = torch.tensor([1])
    bits.gt_masks = BitMasks(torch.ones(1, 40, 50, dtype=torch.bool))
    polygons = Instances((40, 50))
    polygons.gt_classes = torch.tensor([2, 0])
    square = [[0.0, 0.0, 10.0, 0.0, 10.0, 10.0, 0.0, 10.0]]
    polygons.gt_masks = PolygonMasks([square, square])
    none = Instances((40, 50))
    none.gt_classes = torch.tensor([], dtype=torch.int64)
    model([{"image": image(40, 50), "instances": found} for found in (bits, polygons, none)])
    targets = model.criterion.targets
    assert [t["labels"].tolist() for t in targets] == [[1], [2, 0], []]
    assert [t["masks"].sum((1, 2)).tolist() for t in targets] == [[2000], [100, 100], []]


@pytest.mark.parametrize("tasks", [["semantic"], ["instance", "panoptic"]])
def test_predicts_what_the_tasks_ask_for(tasks: list[str]) -> None:
    model = build(tasks=tasks, stuff_classes=[2], score_threshold=0.0).eval()
    inputs = [{"image": image(40, 50), "height": 80, "width": 100}, {"image": image(32, 64)}]
    with torch.no_grad():
        outputs = model(inputs)
    names = {"semantic": "sem_seg", "instance": "instances", "panoptic": "panoptic_seg"}
    for output, size in zip(outputs, [(80, 100), (32, 64)], strict=True):
        assert set(output) == {names[task] for task in tasks}
        if "semantic" in tasks:
            assert output["sem_seg"].shape == (NUM_CLASSES, *size)
            continue
        assert output["instances"].image_size == size
        assert output["instances"].pred_masks.shape[1:] == size
        assert 2 not in output["instances"].pred_classes.tolist()
        ids, info = output["panoptic_seg"]
        assert ids.shape == size
        assert set(ids.unique().tolist()) - {0} == {segment["id"] for segment in info}
        assert all(segment["isthing"] == (segment["category_id"] != 2) for segment in info)


def test_a_batch_predicts_as_single_images_do() -> None:
    model = build(tasks=["semantic"]).eval()
    inputs = [{"image": image(40, 50)}, {"image": image(70, 33)}]
    with torch.no_grad():
        together = model(inputs)
        alone = [model([record])[0] for record in inputs]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one["sem_seg"], other["sem_seg"])


def test_views() -> None:
    views = SemanticViews(window=(32, 32), stride=(16, 16), scales=(1.0, 2.0), flip=True)
    model = build(tasks=["semantic"], views=views).eval()
    (output,) = model([{"image": image(40, 64), "height": 41, "width": 63}])
    assert output["sem_seg"].shape == (NUM_CLASSES, 41, 63)
    with pytest.raises(ValueError, match="views are for"):
        build(views=views)


def test_unknown_tasks() -> None:
    with pytest.raises(ValueError, match="tasks must be some of"):
        build(tasks=["segmentation"])


@pytest.mark.parametrize("limit", [{"max_instances": 0}, {"score_threshold": 1.0}])
def test_limits_that_leave_nothing_are_an_error(limit: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"max_instances must be .* got (0, 0.8|100, 1.0) and 0.8"):
        build(**limit)


def test_names_of_the_official_project() -> None:
    assert {name.split(".")[0] for name in build().state_dict()} == {"sem_seg_head"}
    assert {name for name, _ in build().named_buffers()} == {"pixel_mean", "pixel_std"}


def same_for_every_mask(shape: tuple[int, ...], device: torch.device | None = None) -> Tensor:
    """Points that do not depend on how many masks they are drawn for."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, *shape[1:], generator=generator).expand(shape)


def eomt() -> dict[str, nn.Module]:
    """A backbone that predicts by itself, and the head that it then has."""
    vit = ViT(embed_dim=16, depth=2, num_heads=2, window_block_indexes=(), pretrain_img_size=64)
    backbone = EoMTBackbone(
        vit, num_classes=NUM_CLASSES, num_queries=NUM_QUERIES, num_blocks=1, max_iter=10
    )
    return {"backbone": backbone, "sem_seg_head": nn.Identity()}


def gradients(
    batches: list[list[dict[str, Any]]], parts: Callable[[], dict[str, nn.Module]] = dict
) -> dict[str, Tensor]:
    """Of one update by the Trainer."""
    torch.manual_seed(0)
    matcher = HungarianMatcher(num_points=64, rand=same_for_every_mask)
    criterion = SetCriterion(
        num_classes=NUM_CLASSES, matcher=matcher, num_points=64, rand=same_for_every_mask
    )
    model = build(criterion=criterion, **parts())
    trainer = Trainer(
        model,
        batches,
        torch.optim.SGD(model.parameters(), lr=0.0),
        device_type="cpu",
        accumulation_steps=len(batches),
    )
    trainer.train(0, 1)
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("kind", "counts", "parts"),
    [
        ("instances", (1, 3, 5), dict),
        ("instances", (0, 7), dict),
        ("sem_seg", (1, 3, 0), dict),
        ("instances", (1, 7), eomt),
    ],
)
def test_accumulated_batches_of_unequal_counts_equal_one_large_batch(
    kind: str, counts: tuple[int, ...], parts: Callable[[], dict[str, nn.Module]]
) -> None:
    """The losses are divided by the number of objects in a batch (7: more than queries)."""
    records = []
    for count in counts:
        found = Instances((32, 32))
        found.gt_classes = torch.arange(count) % NUM_CLASSES
        found.gt_masks = BitMasks(torch.rand(count, 32, 32) > 0.5)
        labels = torch.full((32, 32), 255)
        for row in range(count):
            labels[4 * row : 4 * row + 4] = row
        targets = {"instances": found, "sem_seg": labels}
        records.append({"image": image(32, 32), kind: targets[kind]})
    accumulated = gradients([[record] for record in records], parts)
    for name, gradient in gradients([records], parts).items():
        torch.testing.assert_close(accumulated[name], gradient, msg=name)
