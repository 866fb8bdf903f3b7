"""Normalizers of losses that are the same in every process, and in one update of several batches."""

import torch.distributed as dist
from torch import Tensor


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a number over all processes, so that gradients, which DDP averages, add up.

    Args:
        value: of this process, without gradient.

    Returns:
        The mean, of the same shape; the value itself in a single process.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()


def accumulation_weights(counts: Tensor) -> list[float]:
    """What turns the mean of several batches' losses into the loss of one large batch.

    Each loss is a sum over a batch, divided by what is counted in it: the mean over all processes, at
    least 1. So a loss is multiplied by its own denominator, and divided by the large batch's.

    Args:
        counts: (batches,) float, of this process.

    Returns:
        For every batch the factor of its losses.
    """
    counts = mean_over_processes(counts)
    return (counts.clamp(min=1) * len(counts) / counts.sum().clamp(min=1)).tolist()
