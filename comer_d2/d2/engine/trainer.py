"""The training loop: one step, and all steps between the hooks."""

from __future__ import annotations

import math
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
        accumulation_steps: batches per update; their losses are averaged.
        interrupt: is looked at after every step.
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
        self.scaler = torch.amp.GradScaler(device_type, enabled=amp_dtype == torch.float16)
        self.interrupted_by = 0  # the signal's number, once all processes know of it
        self.images_per_step = 0  # in all processes together
        self._batches: Iterator[list[Any]] | None = None

    @property
    def bare_model(self) -> nn.Module:
        """The model without the wrapper for several processes."""
        wrapped = isinstance(self.model, DistributedDataParallel)
        return self.model.module if wrapped else self.model

    def train(self, start_iter: int, max_iter: int) -> None:
        """Run iterations `start_iter` to `max_iter` - 1, or until a signal came.

        After a signal the step is finished and `interrupted_by` is set. As in Detectron2 the hooks'
        `after_train` runs in any case, but errors are left to the caller to print.
        """
        self.iter = self.start_iter = start_iter
        self.max_iter = max_iter
        self.model.train()
        if self._batches is None:
            self._batches = iter(self.data_loader)
        with EventStorage(start_iter) as self.storage:
            self.before_train()
            try:
                for self.iter in range(start_iter, max_iter):
                    self.before_step()
                    self.run_step()
                    self.after_step()
                    if self.interrupted_by:
                        break
            except BaseException:
                self.interrupted_by = 0  # nothing to be saved: the step may be half done
                raise
            finally:
                self._batches = None  # ends the loading processes
                for hook in self._hooks:
                    hook.after_train()

    def run_step(self) -> None:
        """One update from `accumulation_steps` batches.

        Raises:
            TrainingError: a loss, or the gradients' norm, is NaN or infinite; nothing was updated.
        """
        self.optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        data_seconds = 0.0
        images = 0
        for number in range(self.accumulation_steps):
            start = time.perf_counter()
            batch = next(self._batches)
            data_seconds += time.perf_counter() - start
            images += len(batch)
            losses = self._backward(batch, last=number == self.accumulation_steps - 1)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0) + loss.detach().float() / self.accumulation_steps
        self._record(sums, data_seconds, images)
        self._clip_gradients()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def _backward(self, batch: list[Any], last: bool) -> dict[str, Tensor]:
        """Forward and backward of one batch; processes exchange gradients on the last only."""
        wrapped = isinstance(self.model, DistributedDataParallel)
        with self.model.no_sync() if wrapped and not last else nullcontext():
            with torch.autocast(
                self.device_type, self.amp_dtype, enabled=self.amp_dtype is not None
            ):
                losses = self.model(batch)
                losses = losses if isinstance(losses, dict) else {"total_loss": losses}
                total = sum(losses.values())
            self.scaler.scale(total / self.accumulation_steps).backward()
        return losses

    def _record(self, losses: dict[str, Tensor], data_seconds: float, images: int) -> None:
        """Share losses and the wish to stop among the processes, in one exchange; keep them."""
        names = sorted(losses)
        signum = self.interrupt.signum if self.interrupt else 0
        own = torch.stack([losses[name].reshape(()) for name in names])
        extra = torch.tensor([data_seconds, images, signum], dtype=own.dtype)
        rows = _gather_rows(torch.cat([own, extra.to(own.device)]))
        *means, _, _, _ = rows.mean(dim=0).tolist()
        data_seconds, _, signum = rows[:, -3:].amax(dim=0).tolist()
        self.images_per_step = int(rows[:, -2].sum())
        wrong = [
            f"{name} = {value}" for name, value in zip(names, means) if not math.isfinite(value)
        ]
        if wrong:
            raise TrainingError(
                f"loss is not finite at iteration {self.iter}: {', '.join(wrong)}; "
                "the weights were not updated and no checkpoint was written"
            )
        self.interrupted_by = int(signum)
        self.storage.put_scalar("data_time", data_seconds)
        self.storage.put_scalar("total_loss", sum(means))
        if len(names) > 1:
            self.storage.put_scalars(**dict(zip(names, means)))

    def _clip_gradients(self) -> None:
        if self.max_grad_norm is None:
            return
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(
            [p for group in self.optimizer.param_groups for p in group["params"]],
            self.max_grad_norm,
            self.grad_norm_type,
        ).item()
        if math.isfinite(norm):
            self.storage.put_scalar("grad_norm", norm)
        elif not self.scaler.is_enabled():  # the scaler skips such a step, and scales less
            raise TrainingError(
                f"the gradients' norm is {norm} at iteration {self.iter}; "
                "the weights were not updated and no checkpoint was written"
            )

    def state_dict(self) -> dict[str, Any]:
        """Iteration, hooks, optimizer and loss scale, named as in Detectron2's checkpoints."""
        state = super().state_dict()
        state["optimizer"] = self.optimizer.state_dict()
        if self.scaler.is_enabled():
            state["grad_scaler"] = self.scaler.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        super().load_state_dict(state_dict)
        self.optimizer.load_state_dict(state_dict["optimizer"])
        if self.scaler.is_enabled() and "grad_scaler" in state_dict:
            self.scaler.load_state_dict(state_dict["grad_scaler"])


def _gather_rows(row: Tensor) -> Tensor:
    """(n,) in each process -> (processes, n) on the CPU, in all of them."""
    if comm.get_world_size() == 1:
        return row[None].cpu()
    rows = [torch.empty_like(row) for _ in range(comm.get_world_size())]
    dist.all_gather(rows, row)
    return torch.stack(rows).cpu()
