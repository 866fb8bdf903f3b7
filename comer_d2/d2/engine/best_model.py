"""The best model of a run, and what makes it that."""

from __future__ import annotations

import difflib
import logging
import math
import os
from typing import Any

from torch import nn

from ..errors import UserError
from .checkpoint import CheckpointFolder, read_checkpoint, write_json

logger = logging.getLogger(__name__)


class BestModel:
    """Keeps the checkpoint that evaluated best as model_best.pth.

    Its record (metric, mode, value, iteration) is in the checkpoint itself, so that nothing can separate
    them; model_best.json repeats it for people.

    Args:
        folder: where both go.
        metric: such as "bbox/AP".
        mode: "max" or "min".
    """

    def __init__(self, folder: CheckpointFolder, metric: str, mode: str = "max") -> None:
        self._folder = folder
        self._metric = metric
        self._mode = mode
        self._sign = 1 if mode == "max" else -1
        self._path = os.path.join(folder.folder, "model_best.pth")
        self._value: float | None = None

    @property
    def is_known(self) -> bool:
        """Whether an evaluation gave the metric, so that there is a best model."""
        return self._value is not None

    def restore(self) -> None:
        """Take over the best of a run that is continued.

        Raises:
            UserError: model_best.pth is damaged, or holds no record.
        """
        if not os.path.exists(self._path):
            return
        try:
            record = read_checkpoint(self._path)["best"]
            metric, value, iteration = record["metric"], float(record["value"]), record["iteration"]
            mode = record.get("mode", self._mode)
        except (UserError, KeyError, TypeError, ValueError, AttributeError) as e:
            reason = str(e) if isinstance(e, UserError) else f"'{self._path}' holds no record"
            raise UserError(
                f"the best model so far cannot be taken over: {reason}. Put a whole file in its "
                "place, or remove it: the best is then one of the evaluations to come"
            ) from e
        self._write_record(metric, mode, value, iteration)  # whatever is in it, or if it is missing
        if (metric, mode) == (self._metric, self._mode):
            self._value = value
        else:
            logger.warning(
                "model_best.pth was best by %s (%s); by %s (%s) the best is one of the evaluations to come",
                metric,
                mode,
                self._metric,
                self._mode,
            )

    def keep(self, values: dict[str, float], model: nn.Module, iteration: int) -> bool:
        """Write the model if it is the best so far.

        Args:
            values: name -> value of the metrics.
            model: the model.
            iteration: after which it was evaluated.

        Returns:
            Whether it is.
        """
        if self._metric not in values:
            near = difflib.get_close_matches(self._metric, values, n=1)
            logger.warning(
                "No best checkpoint: train.best_checkpointer.metric=%s is not among the results%s",
                self._metric,
                f"; did you mean {near[0]}?" if near else f" ({', '.join(values)})",
            )
            return False
        value = float(values[self._metric])
        if not math.isfinite(value):
            return False
        if self._value is not None and self._sign * value <= self._sign * self._value:
            return False
        record = {
            "metric": self._metric,
            "mode": self._mode,
            "value": value,
            "iteration": iteration,
        }
        state: dict[str, Any] = {
            "model": model.state_dict(),
            "iteration": iteration,
            "best": record,
        }
        path = self._folder.write("model_best", state, resume_from=False)
        self._write_record(**record)
        self._value = value
        logger.info("Best %s so far, %.3f: %s", self._metric, value, path)
        return True

    def _write_record(self, metric: str, mode: str, value: float, iteration: int) -> None:
        record = {"metric": metric, "mode": mode, "value": value, "iteration": iteration}
        write_json(os.path.join(self._folder.folder, "model_best.json"), record)
