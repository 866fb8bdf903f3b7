"""UPerNet: the published sizes, its losses, and a step of training."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import Backbone
from torch import nn

from comer_d2.d2.engine.trainer import Trainer
from comer_d2.d2.modeling.semantic_segmentor import SemanticSegmentor
from comer_d2.heads.upernet import UPerNet, UPerNetHead

CONFIGS = Path(__file__).parents[3] / "configs"


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# 38.7, 61.4 and 144.7 M are published for the whole, with the auxiliary head.
@pytest.mark.parametrize(
    ("size", "whole", "backbone"),
    [("t", 38.72, 10.62), ("s", 61.39, 31.28), ("b", 144.75, 110.60)],
)
def test_parameters_are_the_published_ones(size: str, whole: float, backbone: float) -> None:
    cfg = LazyConfig.load(str(CONFIGS / f"ADE20K/semantic/upernet_comer_{size}.py"))
    with torch.device("meta"):
        model = instantiate(cfg.model)
    assert round(count(model) / 1e6, 2) == whole
    assert round(count(model.backbone) / 1e6, 2) == backbone
    assert {block.attn.window_size for block in model.backbone.vit.blocks} == {0}
    assert model.backbone.vit_features == "stages"
    # Kernels counted by hand for D channels: laterals, pyramid, pooling, two fusions, classifier.
    d = model.backbone.embed_dim
    kernels = 3 * d * 512 + 3 * 512 * 512 * 9 + 4 * d * 512
    kernels += (d + 4 * 512) * 512 * 9 + 4 * 512 * 512 * 9 + 512 * 150
    norms = 2 * 512 * (3 + 3 + 4 + 1 + 1)
    assert count(model.sem_seg_head.decoder) == kernels + norms + 150
    assert count(model.sem_seg_head.auxiliary) == d * 256 * 9 + 2 * 256 + 256 * 150 + 150


@pytest.mark.parametrize(("size", "lr"), [("t", 12e-5), ("s", 6e-5), ("b", 6e-5)])
def test_the_authors_recipe(size: str, lr: float) -> None:
    cfg = LazyConfig.load(str(CONFIGS / f"ADE20K/semantic/upernet_comer_{size}.py"))
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay) == (lr, 0.01)
    assert cfg.optimizer.params.lr_decay_rate == 0.95
    assert cfg.dataloader.train.total_batch_size == 16
    assert cfg.train.max_iter == 160_000
    rate = instantiate(cfg.lr_multiplier)
    assert rate(0) == pytest.approx(1e-6)
    assert rate(0.5) == pytest.approx(0.5)
    assert rate(1500 / 160_000) == pytest.approx(1 - 1500 / 160_000)
    assert list(cfg.model.views.window) == [512, 512]
    assert list(cfg.model.views.stride) == [341, 341]


def tiny_head(**change: Any) -> UPerNetHead:
    settings = {"in_channels": [8] * 4, "num_classes": 3, "channels": 16, "auxiliary_channels": 8}
    return UPerNetHead(**{**settings, **change})


def tiny_features() -> dict[str, torch.Tensor]:
    return {f"res{i + 2}": torch.rand(2, 8, 16 >> i, 24 >> i) for i in range(4)}


def test_loss_ignores_what_has_no_label() -> None:
    head = tiny_head(dropout=0.0)
    features = tiny_features()
    labels = torch.randint(0, 3, (2, 64, 96))
    labels[:, :, 50:] = 255
    _, losses = head(features, labels)
    assert set(losses) == {"loss_sem_seg", "loss_auxiliary"}

    logits = head.decoder([features[name] for name in head.in_features])
    assert logits.shape == (2, 3, 16, 24)
    enlarged = F.interpolate(logits, size=(64, 96), mode="bilinear")[..., :50]
    expected = F.cross_entropy(enlarged, labels[..., :50])
    torch.testing.assert_close(losses["loss_sem_seg"], expected)

    sum(losses.values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())
    _, losses = head(features, torch.full((2, 64, 96), 255))
    assert [loss.item() for loss in losses.values()] == [0.0, 0.0]


def test_predicts_at_the_size_of_the_image() -> None:
    head = tiny_head().eval()
    logits, losses = head(tiny_features())
    assert logits.shape == (2, 3, 64, 96)
    assert losses == {}


def test_pyramid_pooling_sees_the_whole_map() -> None:
    net = UPerNet([4] * 4, 2, channels=8, dropout=0.0).eval()
    maps = [torch.rand(1, 4, 32 >> i, 32 >> i) for i in range(4)]
    maps[3].requires_grad_()
    net(maps)[0, 0, 0, 0].backward()
    assert (maps[3].grad != 0).any(dim=1).all()  # the mean over the one grid reaches every corner


def test_a_config_trains_a_step_and_predicts() -> None:
    cfg = LazyConfig.load(str(CONFIGS / "ADE20K/semantic/upernet_comer_t.py"))
    cfg.model.backbone.vit.depth = 4
    cfg.model.backbone.interaction_indexes = [[i, i] for i in range(4)]
    cfg.model.sem_seg_head.channels = 32
    cfg.model.views.window = cfg.model.views.stride = (64, 64)
    model = instantiate(cfg.model)
    cfg.optimizer.params.model = model
    optimizer = instantiate(cfg.optimizer)
    batch = [
        {
            "image": torch.randint(0, 256, (3, *size), dtype=torch.uint8),
            "sem_seg": torch.randint(0, 150, size),
        }
        for size in ((64, 96), (80, 64))
    ]
    losses = model(batch)
    sum(losses.values()).backward()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not idle
    optimizer.step()
    model.eval()
    with torch.no_grad():
        (output,) = model([{**batch[0], "height": 50, "width": 70}])
    assert output["sem_seg"].shape == (150, 50, 70)
    torch.testing.assert_close(output["sem_seg"].sum(0), torch.ones(50, 70))


class StridedBackbone(Backbone):
    """A convolution and poolings: no norm, so images of a batch are independent."""

    size_divisibility = 32

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.conv(image)
        return {f"res{i + 2}": F.avg_pool2d(x, 4 << i) for i in range(4)}


def test_accumulated_batches_with_unequal_labels_equal_one_large_batch() -> None:
    """The losses are means over the labelled pixels: of one image few, of another none."""
    records = []
    for rows in (64, 3, 0):
        labels = torch.randint(0, 3, (64, 64))
        labels[rows:] = 255
        records.append({"image": torch.rand(3, 64, 64), "sem_seg": labels})

    def gradients(batches: list[list[dict[str, Any]]]) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = SemanticSegmentor(
            backbone=StridedBackbone(),
            sem_seg_head=tiny_head(dropout=0.0, norm_layer=lambda _: nn.Identity()),
            pixel_mean=[0.0] * 3,
            pixel_std=[1.0] * 3,
        )
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        trainer = Trainer(
            model, batches, optimizer, device_type="cpu", accumulation_steps=len(batches)
        )
        trainer.train(0, 1)
        return {name: p.grad for name, p in model.named_parameters()}

    accumulated = gradients([[record] for record in records])
    for name, gradient in gradients([records]).items():
        torch.testing.assert_close(accumulated[name], gradient, msg=name)
