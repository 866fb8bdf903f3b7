"""ATSS and GFL as Detectron2 models: the pyramid, images without objects, precision."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetMapper
from detectron2.modeling import Backbone
from detectron2.modeling.backbone import FPN
from detectron2.structures import Boxes, BoxMode, Instances
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from comer_d2.d2.modeling.dense_detector import DenseDetector, LastLevelP6P7

ROOT = Path(__file__).parents[3]
HEADS = ["atss", "gfl"]


def tiny(head: str, **backbone: Any) -> DenseDetector:
    """The quickstart's model for three classes."""
    cfg = LazyConfig.load(str(ROOT / f"configs/quickstart/{head}_comer_digits.py"))
    cfg.dataset.num_classes = 3
    cfg.model.backbone.bottom_up.update(norm="BN", **backbone)
    torch.manual_seed(0)
    return instantiate(cfg.model)


def record(height: int, width: int, boxes: Sequence[Sequence[float]] = ()) -> dict[str, Any]:
    """An image with objects of class 1, as Detectron2's mapper gives it."""
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.ones(len(boxes), dtype=torch.long)
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    return {"image": image, "height": height, "width": width, "instances": instances}


class Maps(Backbone):
    """Given maps in place of a network's."""

    def __init__(self, maps: dict[str, Tensor]) -> None:
        super().__init__()
        self.maps = maps
        self._out_features = list(maps)
        self._out_feature_strides = {"res3": 8, "res4": 16, "res5": 32}
        self._out_feature_channels = {name: x.shape[1] for name, x in maps.items()}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return self.maps


def test_the_pyramid_is_mmdetections() -> None:
    """FPN with P3 to P7 against MMDetection 3.3's.

    tests/data/mmdet_fpn.safetensors: its FPN with start_level=1, add_extra_convs="on_output" and
    five outputs, random float16 weights, on maps of 12 x 16 to 3 x 4.
    """
    numbers = load_file(ROOT / "tests/data/mmdet_fpn.safetensors")
    maps = {f"res{i + 2}": numbers[f"map.{i}"].float() for i in (1, 2, 3)}
    fpn = FPN(Maps(maps), list(maps), 8, top_block=LastLevelP6P7(8))
    modules = {
        **{f"lateral_convs.{i}.conv": f"fpn_lateral{i + 3}" for i in range(3)},
        **{f"fpn_convs.{i}.conv": f"fpn_output{i + 3}" for i in range(3)},
        "fpn_convs.3.conv": "top_block.p6",
        "fpn_convs.4.conv": "top_block.p7",
    }
    weights = {
        f"{modules[name.removeprefix('weight.').rpartition('.')[0]]}.{name.rpartition('.')[2]}": t
        for name, t in numbers.items()
        if name.startswith("weight.")
    }
    fpn.load_state_dict({name: t.float() for name, t in weights.items()}, strict=True)
    levels = fpn(torch.empty(0))
    assert list(levels) == ["p3", "p4", "p5", "p6", "p7"]
    for i, level in enumerate(levels.values()):
        torch.testing.assert_close(level, numbers[f"level.{i}"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", HEADS)
def test_a_model_of_size_s(head: str) -> None:
    """Parameters of the paper's frameworks; ViT-Adapter-S has 36 M with either head."""
    cfg = LazyConfig.load(str(ROOT / f"configs/COCO/{head}_comer_s_3x.py"))
    with torch.device("meta"):
        model = instantiate(cfg.model)
    heads = sum(p.numel() for p in model.parameters()) - sum(
        p.numel() for p in model.backbone.bottom_up.parameters()
    )
    # By hand: laterals, outputs, P6 and P7; two subnets of 4 convolutions and norms; predictors.
    pyramid = 3 * (384 * 256 + 256) + 5 * (256 * 256 * 9 + 256)
    subnets = 8 * (256 * 256 * 9 + 2 * 256)
    outputs = 80 + (4 + 1 if head == "atss" else 4 * 17)
    assert heads == pyramid + subnets + outputs * (256 * 9 + 1) + 5
    assert cfg.model.backbone.bottom_up.vit.drop_path_rate == {"atss": 0.1, "gfl": 0.2}[head]
    assert cfg.optimizer.params.lr_decay_rate == 1.0
    assert not cfg.dataloader.train.mapper.use_instance_mask


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    "boxes", [[], [[8.0, 10, 50, 60], [30.0, 20, 100, 90]], [[5.0, 5, 5.5, 5.5]] * 60]
)
def test_every_parameter_gets_a_gradient(head: str, boxes: list) -> None:
    """Beside an image with one object: one without any, with two, and with many on one spot."""
    model = tiny(head).train()
    losses = model([record(100, 120, boxes), record(128, 90, [[10.0, 10, 60, 70]])])
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name
    assert all(loss > 0 for loss in losses.values())


@pytest.mark.parametrize("head", HEADS)
def test_a_batch_without_objects(head: str) -> None:
    model = tiny(head).train()
    losses = model([record(100, 120), record(128, 90)])
    sum(losses.values()).backward()
    assert losses.pop("loss_cls") > 0
    assert all(loss == 0 for loss in losses.values())
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle  # DistributedDataParallel would wait for it


def test_crowds_are_not_learnt(tmp_path: Path) -> None:
    """As in all of Detectron2: its mapper drops them, and what they cover is background."""
    Image.new("RGB", (64, 64)).save(tmp_path / "image.png")
    annotations = [
        {"bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0, "iscrowd": crowd}
        for box, crowd in (([4, 4, 30, 30], 0), ([2, 2, 60, 60], 1))
    ]
    mapper = DatasetMapper(is_train=True, augmentations=[], image_format="RGB")
    given = {
        "file_name": str(tmp_path / "image.png"),
        "height": 64,
        "width": 64,
        "annotations": annotations,
    }
    instances = mapper(given)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[4, 4, 30, 30]]


@pytest.mark.parametrize("head", HEADS)
def test_detections(head: str) -> None:
    """At the size asked for, best first, at most so many, alike alone and in a padded batch."""
    model = tiny(head).eval()
    nn.init.normal_(model.head.cls_score.weight, std=0.3)
    model.max_detections_per_image = 20
    small, large = record(64, 96), record(128, 128)
    small["height"], small["width"] = 128, 192
    with torch.no_grad():
        alone, batch = model([small])[0]["instances"], model([small, large])[0]["instances"]
    assert alone.image_size == (128, 192)
    assert 0 < len(alone) <= 20
    assert (alone.scores.diff() <= 0).all()
    assert alone.pred_boxes.tensor[:, 2].max() > 96  # enlarged with the image
    assert len(batch) > 0


def test_an_image_larger_than_the_square_is_not_cut() -> None:
    model = tiny("atss")
    model.backbone._square_pad = 96
    images = model.preprocess_image([record(64, 160), record(32, 32)])
    assert images.tensor.shape[-2:] == (160, 160)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(head: str, dtype: torch.dtype) -> None:
    model = tiny(head).train()
    batch = [record(128, 128, [[10.0, 10, 60, 70]])]
    exact = model(batch)
    with torch.autocast("cpu", dtype):
        losses = model(batch)
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, exact[name], rtol=0.05, atol=0.02)


@pytest.mark.parametrize("head", HEADS)
def test_activation_checkpointing_changes_nothing(head: str) -> None:
    batch = [record(96, 128, [[10.0, 10, 60, 70]])]
    results = []
    for checkpointing in (False, True):
        model = tiny(head, use_act_checkpoint=checkpointing).train()
        losses = model(batch)
        sum(losses.values()).backward()
        results.append((losses, [p.grad for p in model.parameters()]))
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("head.strides", [8, 16]),
        ("head.strides", [4, 8, 16, 32, 64]),
        ("head_in_features", ["p3", "p4"]),
        ("head_in_features", ["p2", "p3", "p4", "p5", "p6"]),
    ],
)
def test_maps_of_other_strides_are_refused(head: str, key: str, value: list) -> None:
    """Before the first iteration, or anchors would silently be elsewhere."""
    cfg = LazyConfig.load(str(ROOT / f"configs/quickstart/{head}_comer_digits.py"))
    cfg.dataset.num_classes = 3
    OmegaConf.update(cfg.model, key, value)
    with pytest.raises(ValueError, match=r"head_in_features .* strides .*'p3': 8"):
        instantiate(cfg.model)


@pytest.mark.parametrize(
    "change",
    [
        {"test_score_thresh": 1.5},
        {"test_nms_thresh": -0.1},
        {"test_topk_candidates": 0},
        {"max_detections_per_image": 0},
    ],
    ids=str,
)
def test_limits_that_leave_nothing_are_refused(change: dict[str, float]) -> None:
    cfg = LazyConfig.load(str(ROOT / "configs/quickstart/atss_comer_digits.py"))
    cfg.dataset.num_classes = 3
    cfg.model.update(change)
    with pytest.raises(
        ValueError, match=f"detections need .*, got .*{next(iter(change.values()))}"
    ):
        instantiate(cfg.model)
