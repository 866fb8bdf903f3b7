"""The small configs of configs/custom: each builds for any number of classes, and its losses train every part."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from comer_d2.d2.engine.average import WeightAverage
from comer_d2.d2.engine.config import load_config

CUSTOM = Path(__file__).parents[2] / "configs" / "custom"


def record(masks: bool) -> dict[str, Any]:
    """An image of 96 x 128 with two objects and a label map of two classes."""
    generator = torch.Generator().manual_seed(0)
    instances = Instances((96, 128))
    instances.gt_boxes = Boxes(torch.tensor([[10.0, 10, 60, 60], [50, 30, 120, 90]]))
    instances.gt_classes = torch.tensor([0, 2])
    if masks:
        bits = torch.zeros(2, 96, 128, dtype=torch.bool)
        bits[0, 10:60, 10:60] = bits[1, 30:90, 50:120] = True
        instances.gt_masks = BitMasks(bits)
    labels = torch.zeros(96, 128, dtype=torch.int64)
    labels[:48] = 2
    image = torch.randint(0, 256, (3, 96, 128), generator=generator, dtype=torch.uint8)
    return {"image": image, "height": 96, "width": 128, "instances": instances, "sem_seg": labels}


@pytest.mark.parametrize(
    ("leaf", "most_millions"),
    [
        ("faster_rcnn_comer_t", 16),
        ("mask_rcnn_comer_t", 17),
        ("upernet_comer_t_semantic", 12),
        ("mask2former_comer_t_panoptic", 16),
        ("upernet_vit_s_frozen_semantic", 30),
    ],
)
def test_a_small_config_trains_a_step(leaf: str, most_millions: float) -> None:
    cfg = load_config(str(CUSTOM / f"{leaf}.py"))
    cfg.dataset.update(num_classes=3, class_names=["a", "b", "c"])
    if "stuff_classes" in cfg.dataset:
        cfg.dataset.update(num_things=2, stuff_classes=[2])
    torch.manual_seed(0)
    model = instantiate(cfg.model).train()
    assert sum(p.numel() for p in model.parameters()) < most_millions * 1e6
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    average = WeightAverage(model, 0.99)
    with EventStorage():
        losses = model([record("faster" not in leaf) for _ in range(2)])
    total = sum(losses.values())
    assert torch.isfinite(total)
    total.backward()
    idle = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    average.trainer = SimpleNamespace(bare_model=model, iter=0)
    average.after_step()
    for name, value in average.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize(
    ("leaf", "baseline"),
    [
        ("faster_rcnn_comer_s_frozen", "faster_rcnn_vit_s_frozen"),
        ("mask_rcnn_comer_s_frozen", "mask_rcnn_vit_s_frozen"),
        ("upernet_comer_s_frozen_semantic", "upernet_vit_s_frozen_semantic"),
    ],
)
def test_a_baseline_has_the_same_vit_and_the_same_recipe(leaf: str, baseline: str) -> None:
    comer, plain = (load_config(str(CUSTOM / f"{name}.py")) for name in (leaf, baseline))
    for part in ("dataset", "dataloader", "optimizer", "lr_multiplier", "train"):
        assert comer[part] == plain[part], part
    vit, net = (
        comer.model.backbone.get("bottom_up", comer.model.backbone).vit,
        plain.model.backbone.net,
    )
    for key in set(vit) - {"_target_", "draw_weights"}:
        assert vit[key] == net[key], key
    plain.dataset.num_classes = 3
    with torch.device("meta"):
        model = instantiate(plain.model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    in_vit = {name for name in trained | frozen if name.startswith("backbone.net.")}
    assert frozen == in_vit


def test_the_semantic_recipe_moves_the_vit_a_fiftieth_as_fast() -> None:
    cfg = load_config(str(CUSTOM / "upernet_comer_s_semantic.py"), ["dataset.num_classes=11"])
    with torch.device("meta"):
        model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    rates = {p: g["lr"] for g in instantiate(cfg.optimizer).param_groups for p in g["params"]}
    assert rates[model.backbone.vit.blocks[11].attn.qkv.weight] == pytest.approx(2e-3 / 50)
    assert {rates[p] for p in model.sem_seg_head.parameters()} == {2e-3}
    assert {rates[p] for p in model.backbone.interactions.parameters() if p.requires_grad} == {2e-3}
