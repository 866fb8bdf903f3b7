"""Where a run's figures and pictures go beside the terminal and metrics.json: `train.loggers`."""

from __future__ import annotations

import csv
import io
import json
import logging
import os
import re
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
from detectron2.utils.events import EventWriter, TensorboardXWriter, get_event_storage

from ...weights.files import write_atomically
from ..errors import UserError

logger = logging.getLogger(__name__)

# Logger -> the module that it needs.
MODULES = {"tensorboard": "tensorboard", "csv": "csv", "wandb": "wandb", "mlflow": "mlflow"}
SHOW_PICTURES = {"tensorboard", "wandb", "mlflow"}


def check_loggers(names: Sequence[str]) -> None:
    """Raise a UserError for a logger that there is not, or whose library is missing."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise UserError(f"train.loggers={names!r} must be a list, of any of {', '.join(MODULES)}")
    for name in names:
        if name not in MODULES:
            raise UserError(f"train.loggers names {name!r}: use any of {', '.join(MODULES)}")
        if find_spec(MODULES[name]) is None:
            raise UserError(
                f"train.loggers names {name}, which is not installed: pip install {name}, or leave it out"
            )


def make_loggers(
    names: Sequence[str], output_dir: str, window: int, start_iter: int
) -> list[EventWriter]:
    """The writers of `train.loggers`; TensorBoard's comes last, as it takes the pictures away.

    Args:
        names: of `MODULES`.
        output_dir: the run's folder.
        window: losses are the median of this many iterations.
        start_iter: the run's next iteration.

    Raises:
        UserError: a service cannot be reached, or wants to know who asks.
    """
    makers: dict[str, Callable[[], EventWriter]] = {
        "csv": lambda: CSVWriter(output_dir),
        "wandb": lambda: WandbWriter(output_dir, window),
        "mlflow": lambda: MLflowWriter(output_dir, window),
        "tensorboard": lambda: TensorboardXWriter(
            output_dir, window, purge_step=start_iter or None
        ),
    }
    return [make() for name, make in makers.items() if name in names]


class CSVWriter(EventWriter):
    """metrics.csv: metrics.json as a table, a line for a line, with the columns of all lines.

    Args:
        output_dir: the run's folder; metrics.json is written before this.
    """

    def __init__(self, output_dir: str) -> None:
        self._source = os.path.join(output_dir, "metrics.json")
        self._path = os.path.join(output_dir, "metrics.csv")
        self._columns: list[str] = []
        self._read = 0  # bytes of metrics.json

    def write(self) -> None:
        if not os.path.exists(self._source):
            return
        records = self._new_records()
        columns = list(dict.fromkeys([*self._columns, *(key for r in records for key in r)]))
        if columns != self._columns or not os.path.exists(self._path):
            self._columns, self._read = columns, 0
            text = self._rows([dict(zip(columns, columns)), *self._new_records()])
            write_atomically(
                self._path, lambda temporary: temporary.write_text(text, encoding="utf-8")
            )
        elif records:
            with open(self._path, "a", encoding="utf-8") as f:
                f.write(self._rows(records))

    def _new_records(self) -> list[dict[str, Any]]:
        with open(self._source, "rb") as f:
            f.seek(self._read)
            lines = f.readlines()
        self._read += sum(map(len, lines))
        return [dict(sorted(json.loads(line).items())) for line in lines]

    def _rows(self, records: Sequence[dict[str, Any]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, lineterminator="\n").writerows(records)
        return text.getvalue()


class _Service(EventWriter):
    """Hands every new figure and picture to a library that keeps them in runs of its own.

    A run that goes on is the same run there: its number is kept in the output folder. A service that fails
    later than at the beginning is left alone from then on: a run of hours does not end because of it.
    """

    name: ClassVar[str]  # in `train.loggers`
    without: ClassVar[str]  # how to do without an account or a server

    def __init__(self, output_dir: str, window: int) -> None:
        self._window = window
        self._number_file = os.path.join(output_dir, f"{self.name}_run.txt")
        self._last, self._last_picture = -1, -1
        self._failed = False
        try:
            self._start(output_dir, self._number())
        except Exception as e:  # of the library
            reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
            raise UserError(
                f"train.loggers names {self.name}, which does not start: {reason} ({self.without}; "
                f"{self._number_file} names the run that is gone on with, if there is one)"
            ) from e

    def write(self) -> None:
        self._try(self._write)

    def close(self) -> None:
        self._try(self._close)

    def _try(self, action: Callable[[], None]) -> None:
        if self._failed:
            return
        try:
            action()
        except Exception as e:
            self._failed = True
            logger.warning(
                "%s failed, and gets nothing more of this run (%s: %s); metrics.json has everything",
                self.name,
                type(e).__name__,
                e,
            )

    def _write(self) -> None:
        storage = get_event_storage()
        by_iteration: dict[int, dict[str, float]] = {}
        for name, (value, step) in storage.latest_with_smoothing_hint(self._window).items():
            if step > self._last:
                by_iteration.setdefault(step, {})[name] = float(value)
        for step in sorted(by_iteration):
            self._figures(by_iteration[step], step)
        pictures = [p for p in storage._vis_data if p[2] > self._last_picture]
        for name, picture, step in pictures:
            self._picture(name, np.ascontiguousarray(np.transpose(picture, (1, 2, 0))), step)
        self._last = max([self._last, *by_iteration])
        self._last_picture = max([self._last_picture, *(step for _, _, step in pictures)])

    def _number(self) -> str | None:
        if not os.path.exists(self._number_file):
            return None
        with open(self._number_file, encoding="utf-8") as f:
            return f.read().strip()

    def _keep_number(self, number: str) -> None:
        with open(self._number_file, "w", encoding="utf-8") as f:
            f.write(number + "\n")

    def _start(self, output_dir: str, number: str | None) -> None:
        raise NotImplementedError

    def _figures(self, values: dict[str, float], step: int) -> None:
        raise NotImplementedError

    def _picture(self, name: str, picture: np.ndarray, step: int) -> None:
        """Keep a picture, (h, w, 3) uint8 RGB."""
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError


class WandbWriter(_Service):
    """Weights & Biases. WANDB_PROJECT names the project, WANDB_MODE=offline keeps all on this machine."""

    name = "wandb"
    without = "WANDB_MODE=offline keeps all on this machine"

    def _start(self, output_dir: str, number: str | None) -> None:
        import wandb

        self._wandb = wandb
        project = os.environ.get("WANDB_PROJECT", "comer_d2")
        name = os.path.basename(os.path.abspath(output_dir))
        self._run = wandb.init(
            project=project, name=name, dir=output_dir, id=number, resume="allow"
        )
        self._keep_number(self._run.id)

    def _figures(self, values: dict[str, float], step: int) -> None:
        self._run.log(values, step=step)

    def _picture(self, name: str, picture: np.ndarray, step: int) -> None:
        self._run.log({name: self._wandb.Image(picture)}, step=step)

    def _close(self) -> None:
        self._run.finish()


class MLflowWriter(_Service):
    """MLflow. MLFLOW_TRACKING_URI names the server; without it, what MLflow itself takes then: a local database."""

    name = "mlflow"
    without = "MLFLOW_TRACKING_URI=file:FOLDER keeps all on this machine"

    def _start(self, output_dir: str, number: str | None) -> None:
        import mlflow

        self._names: dict[str, str] = {}
        if mlflow.get_tracking_uri().startswith(
            "file:"
        ):  # asked for: MLflow wants to be asked twice
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        self._client = mlflow.MlflowClient()
        if number is None:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "comer_d2")
            found = self._client.get_experiment_by_name(name)
            experiment = found.experiment_id if found else self._client.create_experiment(name)
            run_name = os.path.basename(os.path.abspath(output_dir))
            number = self._client.create_run(experiment, run_name=run_name).info.run_id
        self._run = number
        self._client.update_run(self._run, status="RUNNING")
        self._keep_number(self._run)

    def _figures(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self._client.log_metric(self._run, self._allowed(name), value, step=step)

    def _picture(self, name: str, picture: np.ndarray, step: int) -> None:
        self._client.log_image(self._run, picture, f"{name}_{step:07d}.png")

    def _close(self) -> None:
        self._client.set_terminated(self._run)

    def _allowed(self, name: str) -> str:
        """A metric's name without what MLflow refuses, such as a class's "<" or "("; different ones stay so."""
        if name not in self._names:
            group, slash, metric = name.partition("/")
            allowed = group + slash + re.sub(r"[^\w. -]", "_", metric)
            while allowed in self._names.values():
                allowed += "_"
            self._names[name] = allowed
        return self._names[name]
