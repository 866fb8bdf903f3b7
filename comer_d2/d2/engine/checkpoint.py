"""Checkpoints: written whole or not at all, read back weights-only and strictly."""

from __future__ import annotations

import fnmatch
import json
import logging
import os
import pickle
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any

import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from .errors import TrainingError, UserError

logger = logging.getLogger(__name__)


def write_atomically(path: str, write: Callable[[IO[bytes]], None]) -> None:
    """Call `write` on a temporary file beside `path`, then put it in place in one step."""
    folder = os.path.dirname(os.path.abspath(path))
    descriptor, temporary = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as f:
            write(f)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are readable by their owner alone
        os.replace(temporary, path)
    except BaseException:
        if os.path.exists(temporary):
            os.unlink(temporary)
        raise


def write_json(path: str, value: Any) -> None:
    """`write_atomically` for a JSON value."""
    write_atomically(path, lambda f: f.write((json.dumps(value, indent=1) + "\n").encode()))


class CheckpointFolder:
    """The checkpoints of one run, named as Detectron2 names them.

    ``model_0000099.pth`` after 100 iterations, ``model_final.pth``, ``model_best.pth``, and
    ``last_checkpoint``, the name of the one to resume from.

    Args:
        folder: the run's output folder.
        max_to_keep: how many numbered checkpoints stay; the oldest go first.
    """

    def __init__(self, folder: str, max_to_keep: int | None = None) -> None:
        self.folder = folder
        self.max_to_keep = max_to_keep

    def last(self) -> str | None:
        """Path of the checkpoint to resume from, or None where the folder holds no run."""
        try:
            with open(os.path.join(self.folder, "last_checkpoint")) as f:
                name = f.read().strip()
        except FileNotFoundError:
            return None
        return os.path.join(self.folder, name)

    def write(self, name: str, state: dict[str, Any], *, resume_from: bool = True) -> str:
        """Write ``{name}.pth`` and, with `resume_from`, make it the one to resume from.

        Raises:
            TrainingError: weights in ``state["model"]`` that are not finite; nothing is written.
        """
        check_finite(state["model"])
        path = os.path.join(self.folder, f"{name}.pth")
        write_atomically(path, lambda f: torch.save(state, f))
        if resume_from:
            marker = os.path.join(self.folder, "last_checkpoint")
            write_atomically(marker, lambda f: f.write(f"{name}.pth".encode()))
            self._remove_oldest()
        return path

    def _remove_oldest(self) -> None:
        if self.max_to_keep is None:
            return
        numbered = sorted(
            n for n in os.listdir(self.folder) if re.fullmatch(r"model_\d{7,}\.pth", n)
        )
        for name in numbered[: -self.max_to_keep]:
            os.unlink(os.path.join(self.folder, name))


def check_finite(weights: dict[str, Tensor]) -> None:
    """Raise a TrainingError that names the first weight with a NaN or an infinity in it."""
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise TrainingError(f"weight '{name}' is not finite; no checkpoint was written")


def read_checkpoint(path: str) -> dict[str, Any]:
    """Read a checkpoint file without executing anything in it.

    Args:
        path: a ``.pth`` file, or an address that Detectron2 can download.

    Returns:
        A dict with a state dict under "model", and whatever else the file holds.

    Raises:
        UserError: no such file, not a PyTorch file, or objects other than tensors in it.
    """
    try:
        local = PathManager.get_local_path(path)
    except Exception as e:
        raise UserError(f"checkpoint '{path}' cannot be fetched: {e}") from e
    if not os.path.isfile(local):
        raise UserError(f"checkpoint '{path}' does not exist (looked in {os.getcwd()})")
    try:
        state = torch.load(local, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        reason = next(
            (line for line in str(e).split("\n") if "GLOBAL" in line or "global" in line), ""
        )
        raise UserError(
            f"checkpoint '{path}' is no PyTorch file of tensors and plain values only, and reading "
            f"anything else could execute code: {reason.strip() or str(e).strip().split(chr(10))[0]}\n"
            "  if you trust it, load it once with torch.load(..., weights_only=False) and save the "
            "state dict alone"
        ) from e
    except (RuntimeError, EOFError, OSError) as e:
        raise UserError(f"checkpoint '{path}' cannot be read: {str(e).splitlines()[0]}") from e
    if not isinstance(state, dict):
        raise UserError(f"checkpoint '{path}' holds a {type(state).__name__}, not a state dict")
    return state if isinstance(state.get("model"), dict) else {"model": state}


@dataclass
class LoadReport:
    """How a state dict fits a model: the names that were loaded, and those that were not."""

    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    other_shape: list[str] = field(default_factory=list)  # "name (shape in file, shape in model)"

    def __str__(self) -> str:
        lines = [f"loaded {len(self.loaded)} tensors"]
        for title, names in (
            ("missing, keep their initial values", self.missing),
            ("without a place in this model", self.unexpected),
            ("of another shape (in the checkpoint, in the model)", self.other_shape),
        ):
            if names:
                lines.append(f"{len(names)} {title}: {_grouped(names)}")
        return "\n  ".join(lines)


def load_weights(
    model: nn.Module,
    weights: dict[str, Tensor],
    source: str,
    *,
    allow_missing: bool = False,
    allow: Sequence[str] = (),
) -> LoadReport:
    """Load a state dict into a model, all of it or with an account of what did not fit.

    Args:
        model: what to load into.
        weights: state dict; a leading "module." is removed from all names.
        source: where the weights are from, for messages.
        allow_missing: whether tensors of the model may be absent from `weights`.
        allow: shell patterns of names that may be missing, unexpected or of another shape.

    Returns:
        What was loaded and what was not.

    Raises:
        UserError: something does not fit that is not allowed to; the model is left as it was.
    """
    if weights and all(name.startswith("module.") for name in weights):
        weights = {name.removeprefix("module."): value for name, value in weights.items()}
    own = model.state_dict()
    report = LoadReport()
    report.missing = [name for name in own if name not in weights]
    fitting = {}
    for name, value in weights.items():
        if name not in own:
            report.unexpected.append(name)
        elif not isinstance(value, Tensor) or value.shape != own[name].shape:
            shape = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            report.other_shape.append(f"{name} ({shape}, {tuple(own[name].shape)})")
        else:
            fitting[name] = value
    report.loaded = list(fitting)

    def forbidden(names: list[str]) -> list[str]:
        return [n for n in names if not any(fnmatch.fnmatch(n.split(" ")[0], p) for p in allow)]

    wrong = LoadReport(
        report.loaded,
        [] if allow_missing else forbidden(report.missing),
        forbidden(report.unexpected),
        forbidden(report.other_shape),
    )
    if not fitting or wrong.missing or wrong.unexpected or wrong.other_shape:
        raise UserError(
            f"checkpoint '{source}' does not fit the model: {wrong}\n"
            "  choose the config it was made with, or name what may differ in train.init_allow"
        )
    model.load_state_dict(fitting, strict=False)
    return report


def _grouped(names: list[str], show: int = 12) -> str:
    """A few names in full; of many, how many there are under each of their first two parts."""
    if len(names) <= show:
        return ", ".join(names)
    groups = Counter(".".join(name.split(" ")[0].split(".")[:2]) for name in names)
    shown = [f"{group}.* ({count})" for group, count in groups.most_common(show)]
    return ", ".join(shown) + (", ..." if len(groups) > show else "")
