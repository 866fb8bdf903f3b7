"""The largest batch that fits a GPU; what is missing to the config's batch is accumulated."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import nn

from ..data.random_state import preserved_random_state
from ..errors import UserError
from .checks import build
from .derived import images_per_update
from .trainer import Trainer

logger = logging.getLogger(__name__)

EXAMPLES = 64  # training samples that are looked at for the worst of them
MARGIN = 0.1  # share of the memory that stays free: other samples, fragments


def largest_batch(most: int, fits: Callable[[int], bool]) -> int:
    """The largest divisor of `most` that fits, so that whole batches make up an update.

    Args:
        most: images per update and process.
        fits: whether so many images at once do; tried from the largest down.

    Raises:
        UserError: not even one image fits.
    """
    for size in range(most, 0, -1):
        if most % size == 0 and fits(size):
            return size
    raise UserError(
        "train.auto_batch_size: not even one image fits into this GPU's memory; try a smaller "
        "dataset.image_size, train.amp.enabled=true, activation checkpointing "
        "(model.backbone...use_act_checkpoint=true) or a smaller model"
    )


def worst_samples(samples: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tallest, the widest and the one with the most objects: together they are padded the most."""
    return [
        max(samples, key=lambda sample: sample["image"].shape[1]),
        max(samples, key=lambda sample: sample["image"].shape[2]),
        max(samples, key=lambda sample: len(sample.get("instances", ()))),
    ]


def takes_a_step(
    trainer: Trainer, worst: Sequence[dict[str, Any]], size: int, used: Callable[[], float]
) -> bool:
    """Forward, backward and update with a batch of bad cases; whether the memory suffices in all processes.

    Args:
        trainer: of a model that is thrown away afterwards.
        worst: of `worst_samples`; batches smaller than it are tried with each of them.
        size: images.
        used: the largest share of the memory that was used so far, 0 to 1.
    """
    batches = [
        [worst[(first + i) % len(worst)] for i in range(size)] for first in range(len(worst))
    ]
    fits = True
    try:
        for batch in batches[: 1 if size >= len(worst) else None]:
            with EventStorage():
                trainer.optimizer.zero_grad(set_to_none=True)
                trainer.accumulate([batch])
                trainer.scaler.step(trainer.optimizer)
        fits = used() <= 1 - MARGIN
    except torch.OutOfMemoryError:
        fits = False
    return all(comm.all_gather(fits))


def probing_trainer(cfg: DictConfig, model: nn.Module) -> Trainer:
    """A trainer with the config's optimizer and precision, for a model that is thrown away; `cfg` stays as it is."""
    own = DictConfig({"optimizer": copy.deepcopy(cfg.optimizer)}, flags={"allow_objects": True})
    own.optimizer.params.model = model
    trainer = Trainer(
        model,
        [],
        build(own, "optimizer"),
        device_type=torch.device(cfg.train.device).type,
        amp_dtype=getattr(torch, cfg.train.amp.dtype) if cfg.train.amp.enabled else None,
    )
    # An update that the loss scale skips would not make the optimizer's state, whose memory counts.
    trainer.scaler = torch.amp.GradScaler(trainer.device_type, enabled=False)
    return trainer


def settle_batch(cfg: DictConfig, loader: Any, make_model: Callable[[], nn.Module]) -> str:
    """Choose total_batch_size and accumulation_steps so that an update sees as many images as before.

    Args:
        cfg: the config; changed in place.
        loader: of `dataloader.train`.
        make_model: a new model on the GPU.

    Returns:
        What was chosen, for the log.

    Raises:
        UserError: no image fits, or the loader shows none.
    """
    if torch.device(cfg.train.device).type != "cuda":
        return "train.auto_batch_size is for GPUs: the batch stays as it is"
    if not hasattr(loader, "examples"):
        raise UserError(
            "train.auto_batch_size: this dataloader.train shows no samples; "
            "comer_d2.d2.data.loader.build_train_loader does"
        )
    processes = comm.get_world_size()
    update = images_per_update(cfg)
    # The same in all processes: where one runs out of memory, none may wait for it in a synchronised norm.
    worst = comm.all_gather(worst_samples(list(loader.examples(EXAMPLES))))[0]
    with preserved_random_state():
        size = largest_batch(update // processes, lambda n: _fits_gpu(cfg, make_model, worst, n))
    cfg.dataloader.train.total_batch_size = size * processes
    cfg.train.accumulation_steps = update // (size * processes)
    return (
        f"train.auto_batch_size: {size} images at once fit this GPU, of {update // processes} an update "
        f"(total_batch_size={size * processes}, accumulation_steps={cfg.train.accumulation_steps})"
    )


def _fits_gpu(
    cfg: DictConfig, make_model: Callable[[], nn.Module], worst: list[dict[str, Any]], size: int
) -> bool:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    free, _ = torch.cuda.mem_get_info()
    before = torch.cuda.memory_reserved()
    model = make_model().train()
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    # Gradients once more in DistributedDataParallel's buckets, and the moving average.
    beside = weights * ((comm.get_world_size() > 1) + bool(cfg.train.ema.enabled))

    def used() -> float:
        return (torch.cuda.max_memory_reserved() - before + beside) / free

    fits = takes_a_step(probing_trainer(cfg, model), worst, size, used)
    logger.info("train.auto_batch_size: %d images: %s", size, "fit" if fits else "do not fit")
    return fits
