"""From a checkpoint back to a run that goes on."""

from __future__ import annotations

import logging
from typing import Any

from detectron2.utils import comm

from ...weights.frozen import frozen_part_of
from ..data.random_state import set_random_state
from ..errors import UserError
from .average import WeightAverage
from .checkpoint import AVERAGE, CheckpointFolder, load_checkpoint
from .trainer import Trainer

logger = logging.getLogger(__name__)


def resume(
    trainer: Trainer, folder: CheckpointFolder, path: str, average: WeightAverage | None = None
) -> int:
    """Bring a trainer to where a checkpoint was written.

    Args:
        trainer: with all hooks registered.
        folder: of the run.
        path: the checkpoint.
        average: of the weights, if the run keeps one.

    Returns:
        The iteration to go on with.

    Raises:
        UserError: it cannot be read, does not fit, or is no checkpoint of a run; an older one that
            can be read is named.
    """
    try:
        return _load(trainer, folder, path, average)
    except UserError as e:
        older = folder.newest_readable(but=path)
        if older is None:
            raise
        raise UserError(
            f"{e}\n  an older checkpoint of this run can be read: to go on from it, write the name "
            f"{older} into {folder.marker}"
        ) from e


def _load(
    trainer: Trainer, folder: CheckpointFolder, path: str, average: WeightAverage | None
) -> int:
    try:
        state = load_checkpoint(trainer.bare_model, path, complete=True, average=None)
        if average:
            average.restore(state.get(AVERAGE), trainer.bare_model)
        folder.frozen = frozen_part_of(state)
        return _restore(trainer, state)
    except UserError as e:
        if path in str(e):
            raise
        raise UserError(f"checkpoint '{path}': {e}") from e
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as e:
        raise UserError(
            f"checkpoint '{path}' is not of the form that a run writes "
            f"({type(e).__name__}: {str(e).strip().splitlines()[0] if str(e) else ''})"
        ) from e


def _restore(trainer: Trainer, state: dict[str, Any]) -> int:
    if "trainer" not in state:
        raise UserError(
            "it holds weights only, so training cannot go on from it; start a new "
            "run with train.init_checkpoint set to it"
        )
    trainer.load_state_dict(state["trainer"])
    if type(trainer.iter) is not int or trainer.iter < 0:
        raise UserError(f"its iteration is {trainer.iter!r}: the file is damaged")
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
