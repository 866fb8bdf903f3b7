"""Which module a norm's name means, for the processes that are running."""

from collections.abc import Callable

import torch.distributed as dist
from detectron2.layers import NaiveSyncBatchNorm, get_norm
from detectron2.utils import comm
from torch import Tensor, nn


class Float32SyncBatchNorm(NaiveSyncBatchNorm):
    """Detectron2's naiveSyncBN, computing in float32 whatever comes in.

    It takes the variance as E[x^2] - E[x]^2. In bfloat16, which Detectron2's does not widen, that
    has no correct digit left, and may be negative, once the mean is a few times the deviation.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and dtype, normalised over all processes."""
        return super().forward(input.float()).to(input.dtype)


def norm_layer(norm: str | Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """Resolves a norm's name.

    ``"SyncBN"`` becomes plain batch norm in one process (so that it trains on a CPU), torch's
    SyncBatchNorm over nccl, and :class:`Float32SyncBatchNorm` over gloo, where torch's does not
    work. It is decided now, so the process group must be up already.

    Args:
        norm: a name that Detectron2's ``get_norm`` knows, or channels -> module.

    Returns:
        Channels -> module.

    Raises:
        ValueError: (when called with channels) for a name that Detectron2 does not know.
    """
    resolved = norm
    if norm == "SyncBN":
        if comm.get_world_size() == 1:
            resolved = "BN"
        elif dist.get_backend() != "nccl":
            resolved = Float32SyncBatchNorm

    def build(channels: int) -> nn.Module:
        try:
            module = get_norm(resolved, channels)
        except KeyError:
            module = None
        if module is None:
            raise ValueError(
                f"norm {norm!r} is none that Detectron2 knows: use 'SyncBN', 'BN', 'FrozenBN', "
                "'GN' or 'LN', or a callable from channels to a module"
            )
        return module

    return build
