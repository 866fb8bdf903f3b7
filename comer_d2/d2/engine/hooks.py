"""What happens between the steps: checkpoints, evaluation, the best model."""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
from collections.abc import Callable
from typing import Any

from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from ..data.random_state import get_random_state, preserved_random_state, set_random_state
from ..errors import UserError
from .checkpoint import CheckpointFolder, write_json
from .evaluation import EvaluationStopped

logger = logging.getLogger(__name__)


class Checkpoints(HookBase):
    """Writes everything a run needs to go on: every `period` iterations, at the end, on a signal.

    Saved are model, optimizer, schedule, iteration, loss scale, the random states of all
    processes and the data loader's position. All processes must run this hook.

    Args:
        folder: where to.
        period: iterations between checkpoints.
    """

    def __init__(self, folder: CheckpointFolder, period: int) -> None:
        self._folder = folder
        self._period = period
        self._written_after = -1  # iteration
        self.last_written = ""  # path

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self._write("model_final")
        elif done % self._period == 0:
            self._write(f"model_{self.trainer.iter:07d}")

    def after_train(self) -> None:
        if self.trainer.interrupted_by and self._written_after != self.trainer.iter:
            self._write(f"model_{self.trainer.iter:07d}")

    def _write(self, name: str) -> None:
        self._written_after = self.trainer.iter
        random_states = comm.gather(get_random_state())
        if comm.is_main_process():
            state = {
                "model": self.trainer.bare_model.state_dict(),
                "trainer": self.trainer.state_dict(),
                "iteration": self.trainer.iter,
                "random": random_states,
            }
            if hasattr(self.trainer.data_loader, "state_dict"):
                state["data"] = self.trainer.data_loader.state_dict()
            self.last_written = self._folder.write(name, state)
            logger.info(
                "Checkpoint after %d iterations: %s", self.trainer.iter + 1, self.last_written
            )
        comm.synchronize()


def resume(trainer: Any, state: dict[str, Any]) -> int:
    """Bring a trainer to where a checkpoint was written; its model is loaded already.

    Args:
        trainer: a `Trainer` with all hooks registered.
        state: a checkpoint of the `Checkpoints` hook.

    Returns:
        The iteration to go on with.
    """
    if "trainer" not in state:
        raise UserError(
            "the last checkpoint holds weights only, so training cannot go on from it; start a new "
            "run with train.init_checkpoint set to it"
        )
    try:
        trainer.load_state_dict(state["trainer"])
    except (KeyError, ValueError) as e:
        raise UserError(f"the checkpoint's optimizer does not fit the config's: {e}") from e
    start = trainer.iter + 1
    loader = trainer.data_loader
    if hasattr(loader, "seek") and "data" in state:
        loader.load_state_dict(state["data"])
        loader.seek(start * trainer.accumulation_steps)
    else:
        logger.warning(
            "The data loader cannot start in the middle: the first batches are seen again. "
            "comer_d2.d2.data.loader.build_train_loader can."
        )
    states = state.get("random", [])
    if len(states) == comm.get_world_size():
        set_random_state(states[comm.get_rank()])
    else:
        logger.warning(
            "Random states not restored: saved by %d processes, now there are %d",
            len(states),
            comm.get_world_size(),
        )
    return start


class Evaluation(HookBase):
    """Evaluates every `period` iterations and after the last; keeps the best model.

    Args:
        period: iterations between evaluations; 0 evaluates at the end only.
        evaluate: takes the iteration's number, returns Detectron2's results (task -> metric -> value).
        folder: where model_best.pth and model_best.json go.
        metric: such as "bbox/AP"; None keeps no best model.
        mode: "max" or "min".
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[int], dict[str, Any]],
        folder: CheckpointFolder,
        metric: str | None,
        mode: str = "max",
    ) -> None:
        self._period = period
        self.evaluate = evaluate
        self._folder = folder
        self._metric = metric
        self._better = (lambda a, b: a > b) if mode == "max" else (lambda a, b: a < b)
        self._record = os.path.join(folder.folder, "model_best.json")
        self.results: dict[str, Any] = {}  # the latest, in the main process
        self.finished = False  # the one after the last iteration was done, in all processes

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        due = self._period > 0 and done % self._period == 0 and not self.trainer.interrupted_by
        if not due and done != self.trainer.max_iter:
            return
        # An evaluation must not change what training draws: a resumed run skips past ones.
        try:
            with preserved_random_state():
                self.results = self.evaluate(self.trainer.iter)
        except EvaluationStopped:
            self.trainer.interrupted_by = self.trainer.interrupt.signum
            return
        self.finished = done == self.trainer.max_iter
        if comm.is_main_process() and self.results:
            values = flatten_results_dict(self.results)
            self.trainer.storage.put_scalars(**values, smoothing_hint=False)
            self._keep_best(values)
        comm.synchronize()

    def _keep_best(self, values: dict[str, float]) -> None:
        if self._metric is None:
            return
        if self._metric not in values:
            near = difflib.get_close_matches(self._metric, values, n=1)
            logger.warning(
                "No best checkpoint: train.best_checkpointer.metric=%s is not among the results%s",
                self._metric,
                f"; did you mean {near[0]}?" if near else f" ({', '.join(values)})",
            )
            return
        value = float(values[self._metric])
        best = self._best_so_far()
        if not math.isfinite(value) or (best is not None and not self._better(value, best)):
            return
        state = {"model": self.trainer.bare_model.state_dict(), "iteration": self.trainer.iter}
        path = self._folder.write("model_best", state, resume_from=False)
        write_json(
            self._record,
            {"metric": self._metric, "value": value, "iteration": self.trainer.iter},
        )
        logger.info("Best %s so far, %.3f: %s", self._metric, value, path)

    def _best_so_far(self) -> float | None:
        """The best value of this run, from the file beside the checkpoint: it survives a resume."""
        try:
            with open(self._record) as f:
                best = json.load(f)
        except (FileNotFoundError, ValueError):
            return None
        return best["value"] if best["metric"] == self._metric else None
