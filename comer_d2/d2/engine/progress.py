"""What a run tells while it trains: terminal, metrics.json, and other loggers."""

from __future__ import annotations

import datetime
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.engine import HookBase, hooks
from detectron2.utils.events import (
    EventStorage,
    EventWriter,
    JSONWriter,
    get_event_storage,
)

from ...weights.files import write_atomically
from .loggers import make_loggers

logger = logging.getLogger(__name__)

# In metrics.json, seconds: the line of an iteration whose evaluation is done has it.
EVALUATED = "evaluation_seconds"

# Losses and times are shown as the median of this many iterations, as in Detectron2.
WINDOW = 20

# Seconds from which a run is one that a person wants to know how to shorten.
HOURS = 2 * 3600

# Of the machine, not of the training; not measured in the first iterations after a start either.
_SPEEDS = {"time", "images_per_second", "eta_seconds"}


class Throughput(HookBase):
    """Puts images per second and memory into the storage, from the time of Detectron2's timer."""

    def after_step(self) -> None:
        storage = self.trainer.storage
        seconds, iteration = storage.latest().get("time", (None, -1))
        if iteration == self.trainer.iter:  # the timer leaves out the first iterations
            storage.put_scalar("images_per_second", self.trainer.images_per_step / seconds)
        storage.put_scalar("max_mem_mb", peak_memory_mb(self.trainer.device_type))


class Forecast(HookBase):
    """Says after ten iterations how long the run is going to take, and what makes it shorter if that is hours.

    Args:
        device: to name.
        shorter: what could be changed.
    """

    AFTER = 10  # iterations

    def __init__(self, device: str, shorter: str) -> None:
        self._device = device
        self._shorter = shorter

    def after_step(self) -> None:
        trainer = self.trainer
        if (
            trainer.iter + 1 - trainer.start_iter != self.AFTER
            or "time" not in trainer.storage.latest()
        ):
            return
        seconds = trainer.storage.history("time").median(self.AFTER)
        left = seconds * (trainer.max_iter - trainer.iter - 1)
        text = (
            f"{trainer.max_iter - trainer.iter - 1} more iterations of {seconds:.2f} s are "
            f"{datetime.timedelta(seconds=round(left))} on this {self._device}; evaluations come on top"
        )
        hint = f". To make it shorter: {self._shorter}" if left > HOURS else ""
        logger.info("%s%s", text, hint)


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


class Writers(hooks.PeriodicWriter):
    """Detectron2's, which also writes at once what an evaluation found: that makes it count.

    Args:
        events: of `writers`.
        period: iterations between lines.
        lacks_line: metrics.json has no line of the iteration before the first.
    """

    def __init__(self, events: list[EventWriter], period: int, lacks_line: bool) -> None:
        super().__init__(events, period)
        self._lacks_line = lacks_line

    def before_train(self) -> None:
        last = self.trainer.start_iter - 1
        if self._lacks_line and (self._is_due(last) or self._evaluated(last)):
            self._write_records()

    def after_step(self) -> None:
        super().after_step()
        if self._evaluated(self.trainer.iter):
            self._write_records()

    def _is_due(self, iteration: int) -> bool:
        done = iteration + 1
        return done > 0 and (done % self._period == 0 or done == self.trainer.max_iter)

    def _evaluated(self, iteration: int) -> bool:
        return self.trainer.storage.latest().get(EVALUATED, (0.0, -1))[1] == iteration

    def _write_records(self) -> None:
        for writer in self._writers:
            if not isinstance(writer, ProgressPrinter):
                writer.write()
        self.trainer.storage.clear_images()  # all have seen them


class RecentMetrics(HookBase):
    """Carries the smoothing windows over a resume, so that the curves have no seam.

    A hook for its state alone: Detectron2's trainer saves and loads hooks' states.
    """

    def __init__(self) -> None:
        self._restored: dict[str, list[tuple[float, int]]] = {}
        self._restored_latest: dict[str, float] = {}

    def before_train(self) -> None:
        storage = self.trainer.storage
        for name, samples in self._restored.items():
            for value, iteration in samples:
                storage.put_scalar(name, value, cur_iter=iteration)
        storage.put_scalars(
            **self._restored_latest, smoothing_hint=False, cur_iter=self.trainer.start_iter - 1
        )

    def state_dict(self) -> dict[str, Any]:
        storage = getattr(self.trainer, "storage", None)
        if storage is None:
            return {}
        hints = storage.smoothing_hints()
        windows = {
            name: [
                (float(value), int(iteration)) for value, iteration in history.values()[-WINDOW:]
            ]
            for name, history in storage.histories().items()
            if hints[name] and name not in _SPEEDS
        }
        latest = {
            name: float(value)
            for name, (value, iteration) in storage.latest().items()
            if not hints[name] and iteration == self.trainer.iter and name not in _SPEEDS
        }
        if EVALUATED in latest:  # the run ended early: this iteration's line is complete
            latest = {}
        return {"windows": windows, "latest": latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = state_dict["windows"]
        self._restored_latest = state_dict["latest"]


class MetricsFile:
    """The metrics.json of a run that goes on.

    Args:
        output_dir: the run's folder.
    """

    def __init__(self, output_dir: str) -> None:
        self.path = os.path.join(output_dir, "metrics.json")
        self._lines: list[str] = []
        self._records: list[dict[str, Any] | None] = []
        if os.path.exists(self.path):
            with open(self.path, encoding="utf-8", errors="replace") as f:
                self._lines = f.readlines()
            self._records = [_parse(line) for line in self._lines]

    def has(self, iteration: int, key: str = "iteration") -> bool:
        """Whether there is a line of an iteration, with a value of this name."""
        return any(r and r["iteration"] == iteration and key in r for r in self._records)

    def values(self, name: str) -> list[float]:
        """All values of one name, in the order of the lines; what is no number is none."""
        values = [r.get(name) for r in self._records if r]
        return [value for value in values if isinstance(value, (int, float))]

    def forget_from(self, iteration: int) -> None:
        """Drop the lines that the run is going to write again, and any that are no records."""
        unreadable = self._records.count(None)
        if unreadable > 1:  # one may have been cut short when the run was killed
            logger.warning("%s: dropped %d lines that are no records", self.path, unreadable)
        kept = [(line, r) for line, r in zip(self._lines, self._records) if r]
        kept = [(line, r) for line, r in kept if r["iteration"] < iteration]
        if len(kept) < len(self._lines):
            text = "".join(line for line, _ in kept)
            write_atomically(self.path, lambda temporary: temporary.write_text(text))
        self._lines, self._records = [line for line, _ in kept], [r for _, r in kept]


def _parse(line: str) -> dict[str, Any] | None:
    """One line of metrics.json; None if it is none."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    ok = isinstance(record, dict) and isinstance(record.get("iteration"), int)
    return record if ok and line.endswith("\n") else None


def writers(
    output_dir: str, start_iter: int, max_iter: int, loggers: Sequence[str]
) -> list[EventWriter]:
    """The places where a run tells how it goes: terminal, metrics.json, and `train.loggers`."""
    return [
        ProgressPrinter(max_iter),
        JSONWriter(os.path.join(output_dir, "metrics.json"), WINDOW),
        *make_loggers(loggers, output_dir, WINDOW, start_iter),
    ]
