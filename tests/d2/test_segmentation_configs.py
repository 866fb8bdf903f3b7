"""Every segmentation config: it loads without data, builds, and says what its recipe says."""

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.structures import BitMasks, Instances
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

pytestmark = pytest.mark.usefixtures("no_datasets")
CONFIGS = Path(__file__).parents[2] / "configs"
LEAVES = sorted(
    str(path.relative_to(CONFIGS))
    for path in CONFIGS.glob("*/*/*.py")
    if path.parts[-3] != "common"
)
NAMES = {"dataloader", "lr_multiplier", "model", "optimizer", "train"}


def load(leaf: str) -> DictConfig:
    return LazyConfig.load(str(CONFIGS / leaf))


def build(cfg: DictConfig) -> nn.Module:
    """The model, without memory."""
    with torch.device("meta"):
        return instantiate(cfg.model)


def millions(module: nn.Module) -> float:
    return round(sum(parameter.numel() for parameter in module.parameters()) / 1e6, 1)


@pytest.mark.parametrize("leaf", LEAVES)
def test_builds(leaf: str) -> None:
    cfg = load(leaf)
    assert set(cfg) == NAMES
    assert cfg.train.init_checkpoint == ""

    model = build(cfg)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    grouped = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert grouped == sum(p.numel() for p in model.parameters() if p.requires_grad)
    rates = [instantiate(cfg.lr_multiplier)(i / 100) for i in range(100)]
    assert 0 < rates[0] < 1.0001 * max(rates)
    assert 0 <= rates[-1] <= 0.02

    for split in ("train", "test"):
        mapper = instantiate(cfg.dataloader[split].mapper)
        assert mapper.image_format == cfg.model.input_format == "RGB"
        assert mapper.is_train == (split == "train")
    group, metric = cfg.train.best_checkpointer.metric.split("/")
    evaluated = str(cfg.dataloader.evaluator)
    of_group = {"panoptic_seg": "Panoptic", "sem_seg": "Semantic", "segm": "COCOEvaluator"}
    assert of_group[group] in evaluated
    assert metric in ("PQ", "mIoU", "AP")


@pytest.mark.parametrize(
    ("leaf", "classes", "queries"),
    [
        ("ADE20K/semantic/mask2former_comer_t.py", 150, 100),
        ("ADE20K/semantic/mask2former_comer_b.py", 150, 100),
        ("ADE20K/semantic/mask2former_comer_l.py", 150, 200),
        ("ADE20K/panoptic/mask2former_comer_b.py", 150, 100),
        ("COCO/instance/mask2former_comer_s.py", 80, 100),
        ("COCO/instance/mask2former_comer_l.py", 80, 200),
        ("COCO/panoptic/mask2former_comer_s.py", 133, 100),
        ("COCO/panoptic/mask2former_comer_l.py", 133, 200),
        ("COCOStuff/semantic/mask2former_comer_l.py", 171, 200),
    ],
)
def test_classes_and_queries(leaf: str, classes: int, queries: int) -> None:
    model = build(load(leaf))
    predictor = model.sem_seg_head.predictor
    assert predictor.class_embed.out_features == classes + 1
    assert predictor.query_feat.num_embeddings == queries
    assert model.criterion.empty_weight.shape == (classes + 1,)


def test_the_authors_coco_stuff_model() -> None:
    cfg = load("COCOStuff/semantic/mask2former_comer_l.py")
    assert millions(build(cfg)) == 633.6  # published
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (2e-5, 0.05)
    assert cfg.optimizer.params.lr_decay_rate == 0.90
    assert cfg.train.max_iter == 80_000
    assert cfg.dataloader.train.total_batch_size == 16
    assert list(cfg.dataloader.train.mapper.augmentations[1].crop_size) == [896, 896]
    assert list(cfg.model.views.window) == [896, 896]
    assert list(cfg.model.views.stride) == [512, 512]
    assert cfg.dataloader.test.mapper.augmentations[0].short_edge_length == 896


@pytest.mark.parametrize("task", ["instance", "panoptic"])
@pytest.mark.parametrize(
    ("size", "iterations", "milestones"),
    [
        ("s", 368_750, [327_778, 355_092]),
        ("b", 368_750, [327_778, 355_092]),
        ("l", 737_500, [655_556, 710_184]),
    ],
)
def test_mask2formers_coco_recipe(
    task: str, size: str, iterations: int, milestones: list[int]
) -> None:
    cfg = load(f"COCO/{task}/mask2former_comer_{size}.py")
    assert cfg.train.max_iter == iterations
    assert list(cfg.lr_multiplier.scheduler.milestones) == milestones
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (1e-4, 0.05)
    assert cfg.train.clip_grad.max_norm == 0.01
    assert cfg.dataloader.train.total_batch_size == 16
    things_only = set(cfg.model.get("stuff_classes", [])) == set()
    assert things_only == (task == "instance")


def record(task: str, height: int, width: int) -> dict[str, Any]:
    """An image with three masks, as the task's mapper gives it."""
    labels = torch.full((height, width), 255)
    labels[5:40], labels[40:, :30], labels[50:, 30:] = 1, 7, 30
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    inputs = {"image": image, "height": height, "width": width}
    if task == "semantic":
        return {**inputs, "sem_seg": labels}
    instances = Instances((height, width))
    instances.gt_classes = torch.tensor([1, 7, 30])
    instances.gt_masks = BitMasks(labels[None] == instances.gt_classes[:, None, None])
    return {**inputs, "instances": instances}


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_trains_a_step_and_predicts(task: str) -> None:
    data, size = ("ADE20K", "t") if task == "semantic" else ("COCO", "s")
    cfg = load(f"{data}/{task}/mask2former_comer_{size}.py")
    model = instantiate(cfg.model).train()
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    with EventStorage():
        losses = model([record(task, 64, 96), record(task, 90, 70)])
    names = {"loss_ce", "loss_mask", "loss_dice"}
    assert set(losses) == names | {f"{name}_{i}" for name in names for i in range(9)}
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())

    model.eval()
    with torch.no_grad():
        (output,) = model([record(task, 64, 96)])
    if task == "semantic":
        assert output["sem_seg"].shape == (150, 64, 96)
    if task == "panoptic":
        assert output["panoptic_seg"][0].shape == (64, 96)
        assert output["sem_seg"].shape == (133, 64, 96)
    if task in ("instance", "panoptic"):
        assert output["instances"].pred_masks.shape[1:] == (64, 96)
