"""What follows from the data and the batch: the run's length, its periods and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from ..errors import UserError

MOST_WARMUP = 20  # a warm-up in iterations is at most this part of a run whose length is in epochs
PERIODS = ("eval_period", "checkpointer.period")


def derive(cfg: DictConfig, loader: Any, given: Collection[str] = ()) -> list[str]:
    """Fill in what `train.epochs` and `train.lr_batch_size` stand for; twice is as good as once.

    Args:
        cfg: the config; changed in place.
        loader: of `dataloader.train`.
        given: keys of the command line, whose values stay as they are.

    Returns:
        What was computed, a line each.

    Raises:
        UserError: the number of images is needed, and the loader does not tell it.
    """
    notes = []
    if cfg.train.epochs is not None:
        notes.append(_length(cfg, loader, given))
    if cfg.train.lr_batch_size is not None:
        notes.append(_learning_rate(cfg))
    return notes


def images_per_update(cfg: DictConfig) -> int:
    """Images that one update of the weights sees, in all processes together."""
    return cfg.dataloader.train.total_batch_size * cfg.train.accumulation_steps


def _length(cfg: DictConfig, loader: Any, given: Collection[str]) -> str:
    images = getattr(loader, "num_images", None)
    if images is None:
        raise UserError(
            f"train.epochs={cfg.train.epochs}: this dataloader.train does not tell how many images it has; "
            "comer_d2.d2.data.loader.build_train_loader does, or set train.epochs=null train.max_iter=N"
        )
    train, batch = cfg.train, images_per_update(cfg)
    before, train.max_iter = train.max_iter, math.ceil(train.epochs * images / batch)
    for key in PERIODS:
        period = OmegaConf.select(train, key)
        if period and f"train.{key}" not in given:
            shortest = math.ceil(images / batch) if key == "eval_period" else 1
            OmegaConf.update(train, key, max(shortest, round(period * train.max_iter / before)))
    warmup = cfg.lr_multiplier.get("warmup_iters")
    if warmup and "lr_multiplier.warmup_iters" not in given:
        cfg.lr_multiplier.warmup_iters = min(warmup, max(1, train.max_iter // MOST_WARMUP))
    return (
        f"train.epochs={train.epochs:g} x {images} images / {batch} an update = {train.max_iter} "
        f"iterations; evaluation every {train.eval_period}, a checkpoint every "
        f"{train.checkpointer.period}"
    )


def _learning_rate(cfg: DictConfig) -> str:
    reference, batch = cfg.train.lr_batch_size, images_per_update(cfg)
    before = cfg.optimizer.lr
    cfg.optimizer.lr = before * math.sqrt(batch / reference)
    cfg.train.lr_batch_size = batch
    return (
        f"Learning rate {cfg.optimizer.lr:.4g}: {before:.4g}, which is for {reference} images an update, "
        f"times the root of {batch}/{reference}"
    )


def ways_to_shorten(cfg: DictConfig) -> str:
    """The keys of this config that make a run shorter, for a message."""
    length = "train.max_iter" if cfg.train.epochs is None else "train.epochs"
    ways = [f"a smaller {length} (now {OmegaConf.select(cfg, length):g})"]
    if "image_size" in cfg.get("dataset", ()):
        ways.append(f"a smaller dataset.image_size (now {cfg.dataset.image_size})")
    if not cfg.train.amp.enabled and torch.device(cfg.train.device).type == "cuda":
        ways.append("train.amp.enabled=true")
    ways.append("a frozen ViT (its freeze_at)")
    ways.append("a smaller model (configs/custom/*_t*.py)")
    return ", ".join(ways)
