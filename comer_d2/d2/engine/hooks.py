"""What happens between the steps: checkpoints and evaluation."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from detectron2.engine import HookBase
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm
from torch import nn

from ..data.random_state import get_random_state, preserved_random_state
from .average import WeightAverage
from .best_model import BestModel
from .checkpoint import AVERAGE, NUMBERED, CheckpointFolder
from .early_stopping import EarlyStopping
from .evaluation import EvaluationStopped
from .progress import EVALUATED

logger = logging.getLogger(__name__)


class Checkpoints(HookBase):
    """Writes everything a run needs to go on: every `period` iterations, at the end, on a signal.

    Saved are model, optimizer, schedule, iteration, loss scale, the random states of all
    processes and the data loader's position. All processes must run this hook.

    Args:
        folder: where to.
        period: iterations between checkpoints.
        average: of the weights, if the run keeps one; saved too.
    """

    def __init__(
        self, folder: CheckpointFolder, period: int, average: WeightAverage | None = None
    ) -> None:
        self._folder = folder
        self._period = period
        self._average = average
        self._written_after = -1  # iteration
        self.last_written = ""  # path

    def before_train(self) -> None:
        self._written_after = self.trainer.start_iter - 1

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if done == self.trainer.max_iter:
            self._write("model_final")
        elif done % self._period == 0:
            self._write(f"model_{self.trainer.iter:07d}")

    def after_train(self) -> None:
        if self.trainer.iter < self.trainer.start_iter:
            return
        if self.trainer.ended_early:
            self._write("model_final")
        elif self.trainer.interrupted_by and self._written_after != self.trainer.iter:
            self._write(f"model_{self.trainer.iter:07d}")

    def _write(self, name: str) -> None:
        self._written_after = self.trainer.iter
        self._folder.announce(name)
        random_states = comm.gather(get_random_state())
        if comm.is_main_process():
            state = {
                "model": self.trainer.bare_model.state_dict(),
                "trainer": self.trainer.state_dict(),
                "iteration": self.trainer.iter,
                "random": random_states,
            }
            if self._average:
                state[AVERAGE] = self._average.model.state_dict()
            if hasattr(self.trainer.data_loader, "state_dict"):
                state["data"] = self.trainer.data_loader.state_dict()
            self.last_written = self._folder.write(name, state)
            logger.info(
                "Checkpoint after %d iterations: %s", self.trainer.iter + 1, self.last_written
            )
        comm.synchronize()

    def state_dict(self) -> dict[str, Any]:
        """The numbered checkpoints of this run: those are what it may remove."""
        return {"numbered": self._folder.numbered}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # Whatever a checkpoint says: nothing but numbered checkpoints beside it.
        self._folder.numbered = [
            name for name in state_dict["numbered"] if NUMBERED.fullmatch(name)
        ]


class FrozenStart(HookBase):
    """Keeps parameters as they are for the first part of a run.

    Their gradients are computed, as several processes expect them, and thrown away.

    Args:
        parameters: which.
        share: how large a part of the run, 0 to 1.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], share: float) -> None:
        self._parameters = list(parameters)
        self._share = share

    def before_step(self) -> None:
        frozen = self.trainer.iter < self._share * self.trainer.max_iter
        if self.trainer.frozen and not frozen:
            logger.info("The ViT is trained from iteration %d on", self.trainer.iter)
        self.trainer.frozen = self._parameters if frozen else []


class Evaluation(HookBase):
    """Evaluates every `period` iterations and after the last; keeps the best model.

    An evaluation counts when its results are in metrics.json: one that was interrupted before is
    done when the run goes on.

    Args:
        period: iterations between evaluations; 0 evaluates at the end only.
        evaluate: takes the iteration's number, returns Detectron2's results (task -> metric -> value).
        max_iter: iterations of the run.
        best: keeps the best model; None: none is kept.
        average: of the weights, if the run keeps one: it is what `evaluate` measures, and the best model.
        early_stopping: ends the run; None: never.
    """

    def __init__(
        self,
        period: int,
        evaluate: Callable[[int], dict[str, Any]],
        max_iter: int,
        best: BestModel | None,
        average: WeightAverage | None = None,
        early_stopping: EarlyStopping | None = None,
    ) -> None:
        self._period = period
        self._evaluate = evaluate
        self._max_iter = max_iter
        self._best = best
        self.average = average
        self.early_stopping = early_stopping
        self.report_due = False  # whether the latest is one that a report is written on
        self.unfinished = False  # the one that was due at the iteration before the first
        self.results: dict[str, Any] = {}  # the latest, in the main process
        self.finished = False  # the one after the last iteration was done, in all processes

    def is_due(self, iteration: int) -> bool:
        """Whether there is an evaluation after this iteration."""
        done = iteration + 1
        return done > 0 and (
            done >= self._max_iter or (self._period > 0 and done % self._period == 0)
        )

    def before_train(self) -> None:
        last = self.trainer.start_iter - 1
        if self.unfinished:
            logger.info("The evaluation after %d iterations was not finished: doing it", last + 1)
            self._run(last)
        elif last + 1 >= self._max_iter:
            logger.info("All %d iterations are done already: evaluating", self._max_iter)
            self._run(last, counts=False)
        self._end_if_due()

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        if self.is_due(self.trainer.iter) and not (
            self.trainer.interrupted_by and done != self._max_iter
        ):
            self._run(self.trainer.iter)
            self._end_if_due()

    def _observe(self, early_stopping: EarlyStopping, values: dict[str, float]) -> None:
        if early_stopping.metric in values:
            early_stopping.observe([values[early_stopping.metric]])
        else:
            logger.warning(
                "No early stopping: train.early_stopping.metric=%s is not among the results (%s)",
                early_stopping.metric,
                ", ".join(values),
            )

    def _end_if_due(self) -> None:
        """Only the main process knows results; all have to end together."""
        if self.early_stopping is None:
            return
        due = comm.all_gather(self.early_stopping.is_due)[0]
        if due and self.trainer.iter + 1 < self._max_iter:
            logger.info("The run ends here: %s", self.early_stopping)
            self.trainer.ended_early = self.finished = True

    def _run(self, iteration: int, counts: bool = True) -> None:
        start = time.perf_counter()
        # An evaluation must not change what training draws: a resumed run skips past ones.
        try:
            with preserved_random_state():
                self.results = self._evaluate(iteration)
        except EvaluationStopped:
            self.trainer.interrupted_by = self.trainer.interrupt.signum
            return
        self.finished = iteration + 1 >= self._max_iter
        if comm.is_main_process() and self.results and counts:
            values = flatten_results_dict(self.results)
            if self._best:
                model = self.average.model if self.average else self.trainer.bare_model
                self.report_due |= self._best.keep(values, model, iteration)
            if self.finished and not (self._best and self._best.is_known):
                self.report_due = True  # there is no best one: the last has to do
            if self.early_stopping:
                self._observe(self.early_stopping, values)
            # Last, as it is what says that the evaluation counts.
            values[EVALUATED] = time.perf_counter() - start
            self.trainer.storage.put_scalars(**values, smoothing_hint=False, cur_iter=iteration)
        comm.synchronize()


class Reports(HookBase):
    """Writes a report on an evaluation of a best model, in the main process; its curves go on to the run's end.

    It comes after what writes metrics.json, so that the report has this evaluation's line.

    Args:
        evaluation: says when one is due.
        write: writes it.
        update: draws its curves again.
    """

    def __init__(
        self, evaluation: Evaluation, write: Callable[[], None], update: Callable[[], None]
    ) -> None:
        self._evaluation = evaluation
        self._write = write
        self._update = update
        self._is_current = True

    def after_step(self) -> None:
        self._is_current = self._evaluation.report_due
        if self._evaluation.report_due:
            self._evaluation.report_due = False
            self._write()

    def after_train(self) -> None:
        if self._evaluation.report_due:  # of an evaluation before the first step
            self.after_step()
        if not self._is_current:
            self._update()
