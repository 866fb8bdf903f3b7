"""What is chosen by a memory that is told, and that a probe takes whole steps with the worst samples."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from comer_d2.d2.engine.auto_batch import (
    MARGIN,
    largest_batch,
    probing_trainer,
    settle_batch,
    takes_a_step,
    worst_samples,
)
from comer_d2.d2.engine.config import load_config
from comer_d2.d2.engine.trainer import Trainer
from comer_d2.d2.errors import UserError
from tests.d2.runs import ROOT


@pytest.mark.parametrize(
    ("most", "memory", "expected"), [(16, 100, 16), (16, 15, 8), (12, 5, 4), (12, 1, 1), (7, 6, 1)]
)
def test_the_largest_divisor_that_fits(most: int, memory: int, expected: int) -> None:
    tried = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= memory

    assert largest_batch(most, fits) == expected
    assert tried == sorted(tried, reverse=True)
    assert all(most % size == 0 for size in tried)


def test_no_image_fits() -> None:
    with pytest.raises(UserError, match="not even one image fits"):
        largest_batch(8, lambda size: False)


class Network(nn.Module):
    """Sums images; out of memory beyond so many pixels at once."""

    def __init__(self, pixels: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.pixels = pixels
        self.seen: list[list[tuple[int, int]]] = []

    def forward(self, batch: list[dict[str, Any]]) -> dict[str, Tensor]:
        sizes = [tuple(sample["image"].shape[1:]) for sample in batch]
        self.seen.append(sizes)
        if len(batch) * max(h for h, _ in sizes) * max(w for _, w in sizes) > self.pixels:
            raise torch.OutOfMemoryError
        return {"loss": self.scale * torch.stack([s["image"].mean() for s in batch]).mean()}


def sample(height: int, width: int, objects: int) -> dict[str, Any]:
    return {"image": torch.ones(3, height, width), "instances": [0] * objects}


SAMPLES = [sample(10, 10, 1), sample(40, 10, 2), sample(10, 50, 0), sample(20, 20, 9)]


def test_the_worst_samples() -> None:
    sizes = [tuple(s["image"].shape[1:]) for s in worst_samples(SAMPLES)]
    assert sizes == [(40, 10), (10, 50), (20, 20)]


def probe(pixels: float, size: int, used: float = 0.5) -> tuple[bool, Network]:
    model = Network(pixels)
    optimizer = torch.optim.AdamW(model.parameters())
    trainer = Trainer(model, itertools.cycle([[]]), optimizer, device_type="cpu")
    return takes_a_step(trainer, worst_samples(SAMPLES), size, lambda: used), model


def test_a_probe_takes_whole_steps_padded_as_the_worst_batch_is() -> None:
    fits, model = probe(pixels=3 * 40 * 50, size=3)
    assert fits
    assert model.seen == [[(40, 10), (10, 50), (20, 20)]]
    assert model.scale != 1  # updated: the optimizer's state counts too
    assert not probe(pixels=3 * 40 * 50 - 1, size=3)[0]
    fits, model = probe(pixels=1e9, size=1)  # each of them alone
    assert fits and model.seen == [[(40, 10)], [(10, 50)], [(20, 20)]]
    assert not probe(pixels=1e9, size=3, used=1 - MARGIN / 2)[0]  # nothing would stay free


def test_a_cpu_keeps_its_batch() -> None:
    config = str(ROOT / "configs/custom/mask_rcnn_comer_t.py")
    cfg = load_config(config, ["train.device=cpu", "train.auto_batch_size=true"])
    assert "stays as it is" in settle_batch(cfg, None, nn.Identity)
    assert cfg.dataloader.train.total_batch_size == 4


def test_the_rest_of_an_update_is_accumulated(monkeypatch: pytest.MonkeyPatch) -> None:
    config = str(ROOT / "configs/custom/mask_rcnn_comer_t.py")
    cfg = load_config(config, ["dataloader.train.total_batch_size=12"])
    assert cfg.train.device == "cuda"

    class Loader:
        def examples(self, count: int) -> list[dict[str, Any]]:
            return SAMPLES[:count]

    monkeypatch.setattr(
        "comer_d2.d2.engine.auto_batch._fits_gpu", lambda cfg, make, worst, size: size <= 5
    )
    note = settle_batch(cfg, Loader(), nn.Identity)
    assert (cfg.dataloader.train.total_batch_size, cfg.train.accumulation_steps) == (4, 3)
    assert "4 images at once fit this GPU, of 12 an update" in note


def test_the_probes_optimizer_is_the_configs_which_stays_as_it_was() -> None:
    config = str(ROOT / "configs/custom/mask_rcnn_comer_t.py")
    changes = ["optimizer.lr=0.25", "optimizer.weight_decay=0.5"]
    changes += ["optimizer.params.vit_lr_factor=1"]  # there is no ViT
    cfg = load_config(config, ["train.device=cpu", *changes])
    model = nn.ModuleDict({"backbone": nn.Linear(2, 2)})
    trainer = probing_trainer(cfg, model)
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.25}
    assert {group["weight_decay"] for group in trainer.optimizer.param_groups} == {0.5, 0.0}
    assert "model" not in cfg.optimizer.params


def test_a_probe_in_float16_updates_with_each_of_the_worst_samples() -> None:
    config = str(ROOT / "configs/custom/mask_rcnn_comer_t.py")
    amp = ["train.amp.enabled=true", "train.amp.dtype=float16"]
    cfg = load_config(config, ["train.device=cpu", "optimizer.params.vit_lr_factor=1", *amp])
    model = Network(1e9)
    trainer = probing_trainer(cfg, model)
    huge = [{**sample, "image": 1e35 * sample["image"]} for sample in worst_samples(SAMPLES)]
    assert takes_a_step(trainer, huge, 1, lambda: 0.5)  # its gradients times 2**16 are infinite
    assert len(model.seen) == 3
    assert trainer.optimizer.state[model.scale]["step"] == 3
