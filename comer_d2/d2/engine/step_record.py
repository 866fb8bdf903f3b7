"""What is left of a training step that went wrong, enough to compute it again: `comer-d2 replay`."""

from __future__ import annotations

import logging
import os
import statistics
from typing import Any

import torch
from detectron2.utils import comm
from torch import Tensor, nn

from ...weights.files import write_atomically
from ..data.random_state import get_random_state

logger = logging.getLogger(__name__)

FEWEST = 20  # losses that a spike is measured against
MOST_SPIKES = 3  # records of a run
GROUP_DEPTH = 3  # parts of a parameter's name that name its group


class StepRecorder:
    """Remembers how a step began, and writes it down when its loss is not finite or a spike.

    The file holds the weights before the update, the iteration, losses and images of every process, the
    gradients' norms by group, the random states at the beginning of the step, the data's seed, and the loss scale.

    Args:
        folder: the run's output folder.
        spike_factor: a total loss of so many times the median of those before is a spike; None: none is.
    """

    def __init__(self, folder: str, spike_factor: float | None) -> None:
        self._folder = folder
        self._spike_factor = spike_factor
        self._totals: list[float] = []
        self._spikes = 0
        self._random: dict[str, Any] = {}
        self._batches: list[list[Any]] = []

    def begin(self, batches: list[list[Any]]) -> None:
        """A step begins: this process's batches are read, and nothing is computed yet."""
        self._random = get_random_state()
        self._batches = batches

    def is_spike(self, total: float) -> bool:
        """Whether a total loss, the same in all processes, is one of the first spikes."""
        if self._spike_factor is None:
            return False
        before = self._totals[-FEWEST:]
        self._totals = [*before, total]
        spike = len(before) == FEWEST and total > self._spike_factor * statistics.median(before)
        self._spikes += spike
        return spike and self._spikes <= MOST_SPIKES

    def write(
        self,
        reason: str,
        iteration: int,
        model: nn.Module,
        losses: dict[str, list[float]],
        seed: Any,
        loss_scale: float,
    ) -> str:
        """Write the step down; all processes call this.

        Args:
            reason: what is wrong, for people.
            iteration: the step's.
            model: the bare model, with the weights of the beginning of the step, and its gradients.
            losses: name -> values of all processes.
            seed: the training data's `state_dict`, or None.
            loss_scale: by which the losses were multiplied for the backward pass; 1 but in float16.

        Returns:
            The file's path.
        """
        path = os.path.join(self._folder, f"step_{iteration:07d}.pth")
        names = [[_name(record) for record in batch] for batch in self._batches]
        images, random = comm.gather(names), comm.gather(self._random)
        if comm.is_main_process():
            record = {
                "reason": reason,
                "iteration": iteration,
                "losses": losses,
                "images": images,
                "grad_norms": gradient_norms(model),
                "random": random,
                "data": seed,
                "loss_scale": loss_scale,
                "model": model.state_dict(),
            }
            write_atomically(path, lambda temporary: torch.save(record, temporary))
            logger.warning("%s. The step is kept: comer-d2 replay %s", reason, path)
        return path


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """The 2-norm of the gradients of each group of parameters, by the first three parts of their names."""
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            group = ".".join(name.split(".")[:GROUP_DEPTH])
            groups.setdefault(group, []).append(parameter.grad)
    return {group: nn.utils.get_total_norm(grads).item() for group, grads in groups.items()}


def _name(record: Any) -> str:
    return str(record.get("file_name", "")) if isinstance(record, dict) else ""
