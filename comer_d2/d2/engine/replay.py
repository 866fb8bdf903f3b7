"""Compute a step of a training again, from what `StepRecorder` wrote."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from detectron2.utils.events import EventStorage
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..data.custom import resolve_dataset
from ..data.random_state import set_random_state
from ..errors import UserError
from .checks import build
from .run import build_model
from .step_record import gradient_norms
from .trainer import Trainer

KEYS: dict[str, type | tuple[type, ...]] = {
    "reason": str,
    "iteration": int,
    "losses": dict,
    "images": list,
    "grad_norms": dict,
    "random": list,
    "data": (dict, type(None)),
    "loss_scale": float,
    "model": dict,
}


@dataclass(frozen=True)
class Replayed:
    """What came out.

    Args:
        record: what was read, without the weights.
        images: of the step, in the chosen process.
        losses: name -> value.
        grad_norms: group -> 2-norm, before clipping.
        first_not_finite: the first module whose output has a NaN or an infinity, if one does.
        error: with which the model then gave up, if it did; there are no losses and gradients.
    """

    record: dict[str, Any]
    images: list[str]
    losses: dict[str, float]
    grad_norms: dict[str, float]
    first_not_finite: str | None
    error: str | None = None


def read_record(path: str | os.PathLike) -> dict[str, Any]:
    """Read a file of `StepRecorder`, executing nothing in it.

    Raises:
        UserError: it cannot be read, or is none.
    """
    try:
        record = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:
        raise UserError(f"'{path}' cannot be read: {str(e).strip().splitlines()[0]}") from e
    if not _is_record(record):
        raise UserError(
            f"'{path}' is not the record of a step, which a run names step_<iteration>.pth"
        )
    return record


def _is_record(record: Any) -> bool:
    """Whether something has the form of what `StepRecorder` writes, down to the values that are read here."""
    if not isinstance(record, dict) or not all(
        key in record and isinstance(record[key], kind) for key, kind in KEYS.items()
    ):
        return False
    processes = len(record["random"])
    losses, norms = record["losses"], record["grad_norms"]
    return (
        record["iteration"] >= 0
        and processes > 0
        and 0 < record["loss_scale"] < math.inf
        and all(isinstance(v, list) and len(v) == processes for v in losses.values())
        and all(isinstance(x, float) for v in losses.values() for x in v)
        and all(isinstance(x, float) for x in norms.values())
        and all(isinstance(name, str) for name in [*losses, *norms, *record["model"]])
        and all(isinstance(x, Tensor) for x in record["model"].values())
        and (record["data"] is None or isinstance(record["data"].get("seed"), int))
    )


def replay(cfg: DictConfig, record: dict[str, Any], rank: int = 0) -> Replayed:
    """Compute the losses and gradients of a recorded step.

    With several processes it is one of them alone: batch norms see its images only, losses that are divided by
    the objects or pixels of all processes are divided by its own, and gradients are not averaged.

    Args:
        cfg: the run's config.
        record: of `read_record`.
        rank: the process whose images are taken.

    Raises:
        UserError: the config is another model's, its data or its loader are not those of the run, or the
            record's random states are none.
    """
    world_size = len(record["random"])
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank}: the step had {world_size} processes, counted from 0")
    resolve_dataset(cfg)
    loader = build(cfg, "dataloader.train")
    if record["data"] is None or not hasattr(loader, "seek"):
        raise UserError(
            "the data loader cannot start at a batch: comer_d2.d2.data.loader.build_train_loader can"
        )
    loader.load_state_dict(record["data"])
    loader.act_as(rank, world_size)
    loader.seek(record["iteration"] * cfg.train.accumulation_steps)
    model = build_model(cfg)
    try:
        model.load_state_dict(record["model"])
    except RuntimeError as e:
        raise UserError(f"the weights are not those of this config's model: {e}") from e
    trainer = Trainer(
        model.train(),
        loader,
        torch.optim.SGD(model.parameters(), lr=0.0),
        device_type=torch.device(cfg.train.device).type,
        amp_dtype=getattr(torch, cfg.train.amp.dtype) if cfg.train.amp.enabled else None,
        accumulation_steps=cfg.train.accumulation_steps,
    )
    # Which gradients overflow in float16 depends on it.
    trainer.scaler = torch.amp.GradScaler(
        trainer.device_type, record["loss_scale"], enabled=trainer.scaler.is_enabled()
    )
    stream = iter(loader)
    batches = [next(stream) for _ in range(cfg.train.accumulation_steps)]
    try:
        set_random_state(record["random"][rank])
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as e:
        raise UserError(f"the record's random states cannot be taken over: {e!r}") from e
    with EventStorage(record["iteration"]), first_not_finite(model) as found:
        losses, error = {}, None
        try:
            losses = trainer.accumulate(batches)
        except Exception as e:
            if not found:
                raise
            error = f"{type(e).__name__}: {e}"
    if error is None:
        trainer.scaler.unscale_(trainer.optimizer)
    return Replayed(
        {key: value for key, value in record.items() if key != "model"},
        [str(sample.get("file_name", "")) for batch in batches for sample in batch],
        {name: value.item() for name, value in losses.items()},
        gradient_norms(model),
        next(iter(found), None),
        error,
    )


@contextmanager
def first_not_finite(model: nn.Module) -> Iterator[list[str]]:
    """Inside, names of modules whose output has a NaN or an infinity are added to the list, in their order."""
    found: list[str] = []

    def looking(name: str) -> Any:
        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            floats = [
                t for t in tree_leaves(output) if isinstance(t, Tensor) and t.is_floating_point()
            ]
            if not all(torch.isfinite(t).all() for t in floats):
                found.append(name)

        return look

    handles = [m.register_forward_hook(looking(name)) for name, m in model.named_modules() if name]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
