"""What a run tells while it trains: terminal, metrics.json, TensorBoard."""

from __future__ import annotations

import datetime
import json
import logging
import os
import sys
from typing import Any

import torch
from detectron2.engine import HookBase
from detectron2.utils.events import (
    EventStorage,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
    get_event_storage,
)

from ...weights.files import write_atomically

logger = logging.getLogger(__name__)

# Losses and times are shown as the median of this many iterations, as in Detectron2.
WINDOW = 20

# Of the machine, not of the training; not measured in the first iterations after a start either.
_SPEEDS = {"time", "images_per_second"}


class Throughput(HookBase):
    """Puts images per second and memory into the storage, from the time of Detectron2's timer."""

    def after_step(self) -> None:
        storage = self.trainer.storage
        seconds, iteration = storage.latest().get("time", (None, -1))
        if iteration == self.trainer.iter:  # the timer leaves out the first iterations
            storage.put_scalar("images_per_second", self.trainer.images_per_step / seconds)
        storage.put_scalar("max_mem_mb", peak_memory_mb(self.trainer.device_type))


def peak_memory_mb(device_type: str) -> float:
    """Most memory this process used so far, in MiB: allocated on the GPU, resident on a CPU."""
    if device_type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10  # bytes there, KiB here


class ProgressPrinter(EventWriter):
    """One line: time left, iteration, losses, learning rate, seconds, images per second, memory.

    Unlike Detectron2's it shows throughput, and memory on a CPU too.
    """

    def __init__(self, max_iter: int) -> None:
        self._max_iter = max_iter
        self._last = -1

    def write(self) -> None:
        storage = get_event_storage()
        if storage.iter == self._last or storage.iter >= self._max_iter:
            return
        self._last = storage.iter
        parts = [f"iter: {storage.iter + 1}/{self._max_iter}"]
        parts += [f"{k}: {v:.4g}" for k, v in _medians(storage).items() if "loss" in k]
        latest = {name: value for name, (value, _) in storage.latest().items()}
        if "time" in latest:
            seconds = storage.history("time").median(1000) * (self._max_iter - storage.iter - 1)
            storage.put_scalar("eta_seconds", seconds, smoothing_hint=False)
            parts.insert(0, f"eta: {datetime.timedelta(seconds=int(seconds))}")
        smooth = _medians(storage)
        for name, title, form in (
            ("lr", "lr", "{:.4g}"),
            ("grad_norm", "grad_norm", "{:.3g}"),
            ("time", "time", "{:.3f}"),
            ("data_time", "data_time", "{:.3f}"),
            ("images_per_second", "images/s", "{:.1f}"),
            ("max_mem_mb", "max_mem", "{:.0f}M"),
        ):
            if name in latest:
                parts.append(f"{title}: {form.format(smooth.get(name, latest[name]))}")
        logger.info("  ".join(parts))


def _medians(storage: EventStorage) -> dict[str, float]:
    """Name to smoothed value, for what is smoothed at all."""
    values = storage.latest_with_smoothing_hint(WINDOW)
    return {name: value for name, (value, _) in values.items()}


class RecentMetrics(HookBase):
    """Carries the smoothing windows over a resume, so that the curves have no seam.

    A hook for its state alone: Detectron2's trainer saves and loads hooks' states.
    """

    def __init__(self) -> None:
        self._restored: dict[str, list[tuple[float, int]]] = {}

    def before_train(self) -> None:
        for name, samples in self._restored.items():
            for value, iteration in samples:
                self.trainer.storage.put_scalar(name, value, cur_iter=iteration)

    def state_dict(self) -> dict[str, Any]:
        storage = getattr(self.trainer, "storage", None)
        if storage is None:
            return {}
        hints = storage.smoothing_hints()
        return {
            name: [
                (float(value), int(iteration)) for value, iteration in history.values()[-WINDOW:]
            ]
            for name, history in storage.histories().items()
            if hints[name] and name not in _SPEEDS
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict


def writers(output_dir: str, start_iter: int, max_iter: int) -> list[EventWriter]:
    """The three places, with what a stopped run wrote beyond its checkpoint taken back."""
    metrics = os.path.join(output_dir, "metrics.json")
    if os.path.exists(metrics):
        _forget_from(metrics, start_iter)
    return [
        ProgressPrinter(max_iter),
        JSONWriter(metrics, WINDOW),
        TensorboardXWriter(output_dir, WINDOW, purge_step=start_iter or None),
    ]


def _forget_from(path: str, start_iter: int) -> None:
    """Drop the lines of a metrics.json that a resumed run is going to write again."""
    with open(path) as f:
        lines = f.readlines()
    kept = []
    for line in lines:
        try:
            if json.loads(line)["iteration"] < start_iter:
                kept.append(line)
        except (ValueError, KeyError):  # a line cut short when the run was killed
            continue
    if len(kept) < len(lines):
        write_atomically(path, lambda temporary: temporary.write_text("".join(kept)))
