"""Normalizers of losses that are the same in every process."""

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
