"""Checkpoints: written whole or not at all, read back weights-only and strictly."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

from ...weights import WeightsError, load_weights, read_weights
from ...weights.files import averages_beside, check_tensors, write_atomically
from ...weights.frozen import FROZEN, FrozenPart, frozen_part, frozen_part_of, frozen_weights_of
from ...weights.load import frozen_weights
from ...weights.timm_hub import TIMM
from ..errors import TrainingError, UserError
from .output_folder import describe

logger = logging.getLogger(__name__)

NUMBERED = re.compile(r"model_\d{7,}")
AVERAGE = "ema"  # where a checkpoint of a run has the moving average of its weights


def write_json(path: str, value: Any) -> None:
    """Write a JSON file, whole or not at all."""
    text = json.dumps(value, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


class CheckpointFolder:
    """The checkpoints of one run, named as Detectron2 names them.

    ``model_0000099.pth`` after 100 iterations, ``model_final.pth``, ``model_best.pth``, and
    ``last_checkpoint``, the name of the one to resume from.

    Args:
        folder: the run's output folder.
        max_to_keep: how many numbered checkpoints of this run stay; the oldest go first.
    """

    def __init__(self, folder: str, max_to_keep: int | None = None) -> None:
        self.folder = folder
        self.max_to_keep = max_to_keep
        self.marker = os.path.join(folder, "last_checkpoint")
        self.numbered: list[str] = []  # of this run, oldest first; one may be gone, or to come
        self.frozen: FrozenPart | None = None  # weights to leave out: where they came from

    def last(self) -> str | None:
        """Path of the checkpoint to resume from, or None where the folder holds no run."""
        try:
            with open(self.marker, errors="replace") as f:
                name = f.read().strip()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as e:
            raise UserError(f"'{self.marker}' cannot be read: {e.strerror}") from e
        if not re.fullmatch(r"[\w.-]+\.pth", name):
            raise UserError(
                f"'{self.marker}' should hold the name of a checkpoint beside it, not {name[:50]!r}: "
                "write one into it, or remove it to start anew"
            )
        return os.path.join(self.folder, name)

    def newest_readable(self, but: str = "") -> str | None:
        """Name of the newest checkpoint to resume from, other than one; None if there is none."""
        paths = [
            os.path.join(self.folder, name)
            for name in (os.listdir(self.folder) if os.path.isdir(self.folder) else ())
            if re.fullmatch(r"model_(\d{7,}|final)\.pth", name) and name != os.path.basename(but)
        ]
        for path in sorted(paths, key=os.path.getmtime, reverse=True):
            try:
                if "trainer" in read_checkpoint(path):
                    return os.path.basename(path)
            except UserError:
                continue
        return None

    def announce(self, name: str) -> None:
        """Count a checkpoint among this run's before it is written, so that it can say so itself."""
        if NUMBERED.fullmatch(name):
            self.numbered = [n for n in self.numbered if n != name] + [name]

    def write(self, name: str, state: dict[str, Any], *, resume_from: bool = True) -> str:
        """Write ``{name}.pth`` and, with `resume_from`, make it the one to resume from.

        Weights of `frozen` are left out: they never change, and the checkpoint says which file has them.

        Raises:
            TrainingError: weights that are not finite, or an average of them, or no space, or no
                folder any more; what was there stays as it was.
        """
        for entry in {"model", AVERAGE} & state.keys():
            check_finite(state[entry])
        if self.frozen is not None:
            state = {**state, FROZEN: self.frozen.entry()}
            for entry in {"model", AVERAGE} & state.keys():  # an average of what rests is the same
                whole = state[entry]
                state[entry] = {n: t for n, t in whole.items() if n not in self.frozen.names}
        path = os.path.join(self.folder, f"{name}.pth")
        try:
            write_atomically(path, lambda temporary: torch.save(state, temporary))
            if resume_from:
                write_atomically(self.marker, lambda temporary: temporary.write_text(f"{name}.pth"))
        except (OSError, RuntimeError, WeightsError) as e:  # torch's writer has its own errors
            raise TrainingError(
                f"checkpoint '{path}' cannot be written: {describe(e, self.folder)}; the one to "
                "resume from is as it was"
            ) from e
        self.announce(name)
        if resume_from and self.max_to_keep is not None:
            for old in self.numbered[: -self.max_to_keep]:
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(self.folder, f"{old}.pth"))
            self.numbered = self.numbered[-self.max_to_keep :]
        return path


def check_finite(weights: dict[str, Tensor]) -> None:
    """Raise a TrainingError that names the first weight with a NaN or an infinity in it."""
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise TrainingError(f"weight '{name}' is not finite; no checkpoint was written")


def read_checkpoint(path: str, sha256: str | None = None) -> dict[str, Any]:
    """Read a checkpoint file without executing anything in it.

    Args:
        path: a ``.pth``, ``.pkl`` or ``.safetensors`` file, or an address that Detectron2 can
            download.
        sha256: hexadecimal SHA-256 that the file must have.

    Returns:
        A dict with a state dict under "model", and whatever else the file holds.

    Raises:
        UserError: no such file, another one, not a whole checkpoint, or objects other than tensors
            and plain values in it.
    """
    try:
        local = PathManager.get_local_path(path)
    except Exception as e:
        raise UserError(f"checkpoint '{path}' cannot be fetched: {e}") from e
    try:
        weights, rest = read_weights(local, sha256=sha256)
    except WeightsError as e:
        raise UserError(f"checkpoint {e}".replace(local, path)) from e
    return {**rest, "model": weights}


def load_checkpoint(
    model: nn.Module,
    source: str,
    *,
    complete: bool,
    family: str | None = None,
    allow: Sequence[str] = (),
    sha256: str | None = None,
    average: bool | None = False,
) -> dict[str, Any]:
    """Load weights of any supported kind into a model, and log what became of every tensor.

    Args:
        model: what to load into.
        source: as ``train.init_checkpoint``: ``timm:<id>``, a file, or an address.
        complete: whether every part of the model must be in it, as for evaluation.
        family: of a pretrained ViT, where its names do not tell.
        allow: shell patterns of names that may differ.
        sha256: hexadecimal SHA-256 that the file must have.
        average: whether to take the moving average that a run with `train.ema` keeps beside the weights,
            where there is one; None: not, and the caller looks after it.

    Returns:
        What the file holds besides the weights.

    Raises:
        UserError: it cannot be read, or does not fit; the model is left as it was.
    """
    rest = {}
    weights: Any = source
    if not source.startswith(TIMM):
        rest = read_checkpoint(source, sha256)
        weights, sha256 = rest.pop("model"), None
        try:
            frozen = frozen_part_of(rest)
            if frozen is not None:
                given = frozen_weights(model, frozen, os.path.dirname(source), f"'{source}'")
                weights |= given
                if isinstance(rest.get(AVERAGE), dict):
                    rest[AVERAGE] |= given
                logger.info("The frozen ViT of '%s' is that of '%s'", source, frozen.source)
        except WeightsError as e:
            raise UserError(f"checkpoint {e}") from e
        for name in averages_beside(rest):
            if average is not False and name == AVERAGE:
                check_average(rest[name], source)
            if average and name == AVERAGE:
                weights = rest.pop(name)
                logger.info("'%s': its moving average of the weights is used", source)
            elif average is not None:
                logger.info(
                    "'%s' also holds '%s', a moving average of the weights: not used", source, name
                )
    try:
        report = load_weights(
            model,
            weights,
            label=f"'{source}'",
            family=family,
            allow=allow,
            sha256=sha256,
            complete=complete,
        )
    except WeightsError as e:
        raise UserError(f"checkpoint {e}") from e
    logger.info("%s", report)
    return rest


def check_average(weights: Mapping[str, Any], source: str) -> None:
    """Raise a UserError if a moving average holds anything but tensors of finite numbers."""
    try:
        check_tensors(weights, f"'{source}', its moving average of the weights ('{AVERAGE}')")
    except WeightsError as e:
        raise UserError(f"checkpoint {e}") from e


def frozen_source(
    model: nn.Module,
    sources: Mapping[str, Mapping[str, Any]],
    family: str | None,
    allow: Sequence[str],
) -> FrozenPart | None:
    """Find the file that a model's frozen weights are from, so that checkpoints can name it.

    It is read once more, as it will be whenever one of these checkpoints is loaded.

    Args:
        model: has been given its weights.
        sources: what was loaded, as ``train.init_checkpoint``, with what each holds besides weights.
        family: as that of `load_checkpoint`; so is the next.
        allow: names that may differ.

    Returns:
        None if nothing is frozen, or no source has all of it.
    """
    if not frozen_weights_of(model):
        return None
    for source, rest in sources.items():
        path = source if source.startswith(TIMM) else PathManager.get_local_path(source)
        folder = os.path.dirname(path)
        part = frozen_part(model, path, family, allow)
        earlier = frozen_part_of(rest)
        candidates = [part]
        if earlier is not None:  # not through a chain of checkpoints
            found = os.path.abspath(earlier.find(folder)) if earlier.sha256 else earlier.source
            earlier = replace(earlier, source=found, names=part.names, digest=part.digest)
            candidates.insert(0, earlier)
        for candidate in candidates:
            with suppress(WeightsError):
                frozen_weights(model, candidate, folder, f"'{source}'")
                return candidate
    logger.info("Checkpoints hold the frozen weights too: no train.init_checkpoint has them all")
    return None
