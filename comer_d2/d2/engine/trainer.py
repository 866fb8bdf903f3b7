"""The training loop: one step, and all steps between the hooks."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import TrainerBase
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..errors import TrainingError
from .interrupt import InterruptFlag
from .optimizer_state import load_optimizer, save_optimizer
from .step_record import StepRecorder

# Steps in a row that float16 may skip. The loss scale begins at 2**16 and halves at each: after so
# many it is below 1/100, where no gradient overflows for its scale.
SKIPPED_STEPS = 24


class Trainer(TrainerBase):
    """Trains a model that returns a dict of losses, for one optimizer and one stream of batches.

    Args:
        model: the model, or a DistributedDataParallel around it, on its device.
        data_loader: endless iterable of batches, each a list of samples.
        optimizer: the optimizer.
        device_type: "cpu" or "cuda"; where autocast acts.
        amp_dtype: torch.bfloat16 or torch.float16 for mixed precision, None for float32; float16
            scales the loss.
        max_grad_norm: gradients are scaled down to this norm when theirs is larger; None: never.
        grad_norm_type: which norm.
        accumulation_steps: batches per update; their losses are averaged. A model whose losses are
            divided by what is in a batch gives the weights for that: ``model.loss_scales(batches)``
            returns, for every batch, the factors of its losses by the beginnings of their names.
        interrupt: is looked at after every step.
        recorder: writes down a step whose loss is a spike or not finite.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Iterable[list[Any]],
        optimizer: torch.optim.Optimizer,
        *,
        device_type: str,
        amp_dtype: torch.dtype | None = None,
        max_grad_norm: float | None = None,
        grad_norm_type: float = 2.0,
        accumulation_steps: int = 1,
        interrupt: InterruptFlag | None = None,
        recorder: StepRecorder | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.data_loader = data_loader
        self.optimizer = optimizer
        self.device_type = device_type
        self.amp_dtype = amp_dtype
        self.max_grad_norm = max_grad_norm
        self.grad_norm_type = grad_norm_type
        self.accumulation_steps = accumulation_steps
        self.interrupt = interrupt
        self.recorder = recorder
        self.frozen: list[nn.Parameter] = []  # not updated; a hook may change it between steps
        self.scaler = torch.amp.GradScaler(device_type, enabled=amp_dtype == torch.float16)
        self.interrupted_by = 0  # the signal's number, once all processes know of it
        self.ended_early = False  # by a hook, for all processes: there is nothing to gain any more
        self.images_per_step = 0  # in all processes together
        self._skipped = 0  # steps in a row, by float16
        self._updated = False  # whether this run ever took a step
        self._batches: Iterator[list[Any]] | None = None

    @property
    def bare_model(self) -> nn.Module:
        """The model without the wrapper for several processes."""
        wrapped = isinstance(self.model, DistributedDataParallel)
        return self.model.module if wrapped else self.model

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations `start_iter` to `max_iter` - 1, or until a signal came or a hook ends it.

        After a signal the step is finished and `interrupted_by` is set; hooks may set it, and
        `ended_early`, before the first one. As in Detectron2 the hooks' `after_train` runs in any case, but errors are left to
        the caller to print.
        """
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        self.model.train()
        if self._batches is None:
            self._batches = iter(self.data_loader)
        with EventStorage(start_iter) as self.storage:
            try:
                self.before_train()
                if self.interrupted_by or self.ended_early:
                    self.iter = start_iter - 1
                    return
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    if self.interrupted_by or self.ended_early:
                        break
            except BaseException:
                self.ended_early = False
                self.interrupted_by = 0  # nothing to be saved: the step may be half done
                raise
            finally:
                self._batches = None  # ends the loading processes
                for hook in self._hooks:
                    hook.after_train()

    def run_step(self) -> None:
        """One update from `accumulation_steps` batches.

        Raises:
            TrainingError: a loss or a gradient is NaN or infinite (in float16: for too many steps).
        """
        self.optimizer.zero_grad(set_to_none=True)
        start = time.perf_counter()
        batches = [next(self._batches) for _ in range(self.accumulation_steps)]
        data_seconds = time.perf_counter() - start
        if self.recorder:
            self.recorder.begin(batches)
        try:
            sums = self.accumulate(batches)
        except FloatingPointError as error:  # Detectron2's, of proposals that are not finite
            raise self._gave_up(str(error)) from error
        for parameter in self.frozen:
            parameter.grad = None
        self.scaler.unscale_(self.optimizer)
        norm = self._gradient_norm()
        finite = self._record(sums, norm, data_seconds, sum(len(batch) for batch in batches))
        if self.max_grad_norm is not None:
            # After what is said of the gradients: one that is not finite makes all of them so.
            nn.utils.clip_grads_with_norm_(self._parameters(), self.max_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._count_skipped(finite)

    def accumulate(self, batches: list[list[Any]]) -> dict[str, Tensor]:
        """Forward and backward of an update's batches.

        Returns:
            Name -> the loss, () float32, the mean of the batches'; their gradients are the parameters'.
        """
        sums: dict[str, Tensor] = {}
        for number, (batch, scales) in enumerate(zip(batches, self._loss_scales(batches))):
            losses = self._backward(batch, scales, last=number == self.accumulation_steps - 1)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach().float() / self.accumulation_steps
        return sums

    def _loss_scales(self, batches: list[list[Any]]) -> list[dict[str, float]]:
        """For every batch of an update, beginnings of loss names -> factors; see `Trainer`."""
        if len(batches) == 1 or not hasattr(self.bare_model, "loss_scales"):
            return [{}] * len(batches)
        return self.bare_model.loss_scales(batches)

    def _backward(
        self, batch: list[Any], scales: dict[str, float], last: bool
    ) -> dict[str, Tensor]:
        """Forward and backward of one batch; processes exchange gradients on the last only."""
        wrapped = isinstance(self.model, DistributedDataParallel)
        with self.model.no_sync() if wrapped and not last else nullcontext():
            with torch.autocast(
                self.device_type, self.amp_dtype, enabled=self.amp_dtype is not None
            ):
                losses = self._forward(batch)
                losses = losses if isinstance(losses, dict) else {"total_loss": losses}
                for beginning, scale in scales.items():
                    losses |= {n: v * scale for n, v in losses.items() if n.startswith(beginning)}
                total = sum(losses.values())
            self.scaler.scale(total / self.accumulation_steps).backward()
        return losses

    def _forward(self, batch: list[Any]) -> Any:
        """What the model returns.

        Raises:
            TrainingError: the images are so small that batch norm sees one pixel of them.
        """
        try:
            return self.model(batch)
        except ValueError as error:  # torch's, and GlooSyncBatchNorm's
            if not re.search("more than (1 value|one pixel)", str(error)):
                raise
            images = ", ".join(map(_describe, batch))
            raise TrainingError(
                f"batch norm has one pixel to take a variance of at iteration {self.iter}, of "
                f"{images}: leave such images out, enlarge them in "
                "dataloader.train.mapper.augmentations, take more of them at once "
                "(dataloader.train.total_batch_size), or a model without batch norm"
            ) from error

    def _record(
        self, losses: dict[str, Tensor], norm: Tensor, data_seconds: float, images: int
    ) -> bool:
        """Share losses and the wish to stop among the processes, in one exchange; keep them.

        This is where a step waits for its device, and the only place.

        Returns:
            Whether all gradients are finite; if not, the scaler is going to skip this step.

        Raises:
            TrainingError: a loss is not finite, or a gradient is not and there is no scaler.
        """
        names = sorted(losses)
        signum = self.interrupt.signum if self.interrupt else 0
        own = torch.stack([losses[name].reshape(()) for name in names] + [norm.float()])
        # Filled on the device, not copied to it: a copy would wait.
        extra = [own.new_full((1,), value) for value in (data_seconds, images, signum)]
        rows = _gather_rows(torch.cat([own, *extra]))
        *means, _, _, _, _ = rows.mean(dim=0).tolist()
        total_norm, data_seconds, _, signum = rows[:, -4:].amax(dim=0).tolist()
        self.images_per_step = int(rows[:, -2].sum())
        wrong = [
            f"{name} = {value}" for name, value in zip(names, means) if not math.isfinite(value)
        ]
        of_processes = {name: rows[:, i].tolist() for i, name in enumerate(names)}
        if wrong:
            raise self._kept(
                f"loss is not finite at iteration {self.iter}: {', '.join(wrong)}; "
                + (self._broken_weight() or "the weights were not updated")
                + ", and no checkpoint was written",
                of_processes,
            )
        if self.recorder and self.recorder.is_spike(sum(means)):
            self._keep(f"total_loss = {sum(means):.4g} is a spike", of_processes)
        self.interrupted_by = int(signum)
        self.storage.put_scalar("data_time", data_seconds)
        self.storage.put_scalar("total_loss", sum(means))
        if len(names) > 1:
            self.storage.put_scalars(**dict(zip(names, means)))
        if math.isfinite(total_norm):
            self.storage.put_scalar("grad_norm", total_norm)
            return True
        if not self.scaler.is_enabled():
            raise self._kept(
                f"{self._broken_gradient()} at iteration {self.iter}; the weights were not "
                "updated and no checkpoint was written",
                of_processes,
            )
        return False

    def _keep(
        self, reason: str, losses: dict[str, list[float]], loss_scale: float | None = None
    ) -> str:
        """Write the step down, with the losses of all processes; returns the file's path.

        Args:
            reason: for people.
            losses: name -> values of all processes.
            loss_scale: the step's, if the scaler has gone on since; None: the scaler's.
        """
        has_seed = hasattr(self.data_loader, "state_dict")
        seed = self.data_loader.state_dict() if has_seed else None
        scale = self.scaler.get_scale() if loss_scale is None else loss_scale
        return self.recorder.write(reason, self.iter, self.bare_model, losses, seed, scale)

    def _gave_up(self, reason: str) -> TrainingError:
        """The error of a model that gives up in its forward; other processes may not, and cannot be asked."""
        reason = f"{reason.rstrip('!. ')} at iteration {self.iter}; no checkpoint was written"
        return self._kept(reason, {}) if comm.get_world_size() == 1 else TrainingError(reason)

    def _kept(
        self, reason: str, losses: dict[str, list[float]], loss_scale: float | None = None
    ) -> TrainingError:
        """The error that ends the run, after the step was written down; arguments as for `_keep`."""
        if not self.recorder:
            return TrainingError(reason)
        path = self._keep(reason, losses, loss_scale)
        return TrainingError(f"{reason}. The step is kept: comer-d2 replay {path}")

    def _broken_weight(self) -> str | None:
        """That an earlier update spoilt the weights, if one did."""
        for name, parameter in self.bare_model.named_parameters():
            if not torch.isfinite(parameter).all():
                return (
                    f"weight '{name}' is not finite since an update before: the learning rate may "
                    "be too high"
                )
        return None

    def _parameters(self) -> list[nn.Parameter]:
        """What the optimizer updates."""
        return [p for group in self.optimizer.param_groups for p in group["params"]]

    def _gradient_norm(self) -> Tensor:
        """() the norm of all gradients together, on their device."""
        gradients = [p.grad for p in self._parameters() if p.grad is not None]
        return nn.utils.get_total_norm(gradients, self.grad_norm_type)

    def _broken_gradient(self) -> str:
        """Which gradient is NaN or infinite, for a message."""
        for name, parameter in self.bare_model.named_parameters():
            if parameter.grad is not None and not torch.isfinite(parameter.grad).all():
                return f"the gradient of '{name}' is not finite"
        return "the gradients' norm is not finite"

    def _count_skipped(self, finite: bool) -> None:
        """Stop a run in float16 that learns nothing any more."""
        self._skipped = 0 if finite else self._skipped + 1
        self._updated |= finite
        ends = self.iter + 1 == self.max_iter
        if self._skipped < SKIPPED_STEPS and (self._updated or not ends):
            return
        which = "the last" if self._updated else "all"
        raise self._kept(
            f"float16 skipped {which} {self._skipped} steps: "
            f"{self._broken_gradient()} at iteration {self.iter}, down to a loss scale of "
            f"{self.scaler.get_scale():g}. The weights are those of {self._skipped} steps before, "
            "and no checkpoint was written; train.amp.dtype=bfloat16 has the range of float32, and "
            "train.amp.enabled=false shows whether the loss itself is to blame",
            {},
            self.scaler.get_scale() / self.scaler.get_backoff_factor(),  # before it was lowered
        )

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks, optimizer and loss scale, under the names of Detectron2's checkpoints."""
        state = super().state_dict()
        state["optimizer"] = save_optimizer(self.optimizer, self.bare_model)
        if self.scaler.is_enabled():
            state["grad_scaler"] = self.scaler.state_dict()
            state["skipped_steps"] = {"in_a_row": self._skipped, "updated": self._updated}
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; the optimizer's settings stay the config's."""
        super().load_state_dict(state_dict)
        load_optimizer(self.optimizer, self.bare_model, state_dict["optimizer"])
        if self.scaler.is_enabled() and "grad_scaler" in state_dict:
            self.scaler.load_state_dict(state_dict["grad_scaler"])
            self._skipped = state_dict["skipped_steps"]["in_a_row"]
            self._updated = state_dict["skipped_steps"]["updated"]


def _describe(sample: Any) -> str:
    """The file of a sample and the size in which it is trained with."""
    if not isinstance(sample, dict) or "image" not in sample:
        return "a sample"
    height, width = sample["image"].shape[-2:]
    return f"{sample.get('file_name', 'an image')} (trained with at {width} x {height})"


def _gather_rows(row: Tensor) -> Tensor:
    """(n,) in each process -> (processes, n) on the CPU, in all of them."""
    if comm.get_world_size() == 1:
        return row[None].cpu()
    rows = [torch.empty_like(row) for _ in range(comm.get_world_size())]
    dist.all_gather(rows, row)
    return torch.stack(rows).cpu()
