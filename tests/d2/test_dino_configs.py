"""The configs of DINO and Co-DINO: sizes of the published models, and what their recipes say."""

import math

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from omegaconf import DictConfig
from torch import nn

from tests.d2.runs import ROOT

PER_EPOCH = 117_266 / 16


def load(leaf: str) -> DictConfig:
    return LazyConfig.load(str(ROOT / "configs" / leaf))


def build(cfg: DictConfig) -> nn.Module:
    with torch.device("meta"):
        return instantiate(cfg)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_head_has_the_parameters_of_mmdetections_dino() -> None:
    # Counted on its dino-4scale_r50 and dino-5scale_swin-l, without their backbones.
    cfg = load("COCO/dino_comer_s_12ep.py").model
    cfg.head.neck.in_channels = [512, 1024, 2048]
    assert count(build(cfg.head)) == 24_194_380
    cfg = load("COCO/codino_comer_l.py").model
    cfg.head.neck.in_channels = [192, 384, 768, 1536]
    cfg.head.num_queries = 900
    assert count(build(cfg.head)) == 23_131_340


@pytest.mark.parametrize(
    ("trunk", "layer_decay", "scales"),
    [
        ("comer_s", 0.70, 4),
        ("comer_b", 0.60, 4),
        ("vit_s", 0.70, 4),
        ("vit_b", 0.60, 4),
        ("swin_t", 1.0, 4),
        ("swin_l", 1.0, 5),
    ],
)
@pytest.mark.parametrize(("epochs", "step"), [(12, 11), (24, 20), (36, 30)])
def test_dinos_recipe(trunk: str, layer_decay: float, scales: int, epochs: int, step: int) -> None:
    cfg = load(f"COCO/dino_{trunk}_{epochs}ep.py")
    assert cfg.train.max_iter == math.ceil(epochs * PER_EPOCH)
    rate = instantiate(cfg.lr_multiplier)
    assert rate(501 / cfg.train.max_iter) == pytest.approx(1)
    assert rate((step * PER_EPOCH - 1) / cfg.train.max_iter) == pytest.approx(1)
    assert rate((step * PER_EPOCH + 1) / cfg.train.max_iter) == pytest.approx(0.1)
    assert rate(0.9999) == pytest.approx(0.1)
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (1e-4, 1e-4)
    assert cfg.optimizer.params.lr_decay_rate == layer_decay
    assert cfg.optimizer.params.backbone_lr_factor == (0.1 if layer_decay == 1 else 1.0)
    assert cfg.train.clip_grad.max_norm == 0.1
    assert cfg.dataloader.train.total_batch_size == 16
    resize = cfg.dataloader.train.mapper.augmentations[-1]
    assert (min(resize.short_edge_length), max(resize.short_edge_length)) == (480, 800)
    head = cfg.model.head
    assert (head.num_queries, head.neck.num_levels) == (900, scales)
    assert (head.encoder.num_layers, head.decoder.num_layers) == (6, 6)


def test_one_override_changes_the_classes_of_every_part() -> None:
    cfg = load("COCO/codino_comer_l.py").model
    cfg.head.proposals.num_classes = 7
    model = build(cfg)
    assert model.head.proposals.class_embed.out_features == 7
    assert {linear.out_features for linear in model.head.decoder.class_embed} == {7}
    assert model.head.denoising.label_embed.num_embeddings == 7
    heads = model.collaborative
    assert heads.roi_heads.box_predictor.cls_score.out_features == 8
    assert heads.atss.cls_score.out_channels == 7
    assert {heads.roi_queries.num_classes, heads.atss_queries.num_classes} == {7}
    assert heads.roi_queries is not heads.atss_queries


def test_codino_as_it_is_published() -> None:
    cfg = load("COCO/codino_comer_l.py")
    assert cfg.train.max_iter == 117_266 == round(16 * PER_EPOCH)
    assert list(cfg.lr_multiplier.scheduler.milestones) == [65_963, 109_937]
    assert list(cfg.dataloader.train.mapper.augmentations[2].crop_size) == [1536, 1536]
    model = build(cfg.model)
    assert model.backbone.padding_constraints["square_size"] == 1536
    assert model.criterion.quality
    assert model.head.neck.in_features == ("res2", "res3", "res4", "res5")
    heads = model.collaborative
    # lambda_2 = 2 for each of 6 layers, on top of the heads' own weights.
    assert heads.weight == 12
    predictor = heads.roi_heads.box_predictor
    assert predictor.loss_weight == {"loss_cls": 1.0, "loss_box_reg": 10.0}
    assert heads.atss.box_weight == 2
    anchors = heads.proposal_generator.anchor_generator
    assert anchors.num_anchors == [9] * 6
    windows = [block.attn.window_size for block in model.backbone.vit.blocks]
    assert [i for i, window in enumerate(windows) if window == 56] == [5, 11, 17, 23]
    assert set(windows) == {14, 56}


def test_five_scales_use_every_map() -> None:
    four, five = (load(f"COCO/{leaf}.py").model for leaf in ("dino_comer_s_12ep", "codino_comer_l"))
    frozen = [name for name, p in build(four).named_parameters() if not p.requires_grad]
    assert frozen  # what only the map of stride 4 would need
    assert all(p.requires_grad for p in build(five).parameters())


def test_the_plain_vit_gives_its_maps() -> None:
    model = instantiate(load("COCO/dino_vit_s_12ep.py").model)
    shapes = model.backbone.output_shape()
    assert {name: shape.stride for name, shape in shapes.items()} == {"p3": 8, "p4": 16, "p5": 32}
    assert model.head.neck.in_features == tuple(shapes)
    assert model.head.neck.projections[0][0].in_channels == shapes["p3"].channels
