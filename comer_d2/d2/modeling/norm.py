"""Which module a norm's name means, for the processes that are running."""

from collections.abc import Callable

import torch
import torch.distributed as dist
from detectron2.layers import BatchNorm2d, get_norm
from detectron2.utils import comm
from fvcore.nn.distributed import differentiable_all_reduce
from torch import Tensor, nn


class GlooSyncBatchNorm(BatchNorm2d):
    """Batch norm over the pixels of all processes, whatever share of them each has.

    Torch's SyncBatchNorm does not work over gloo. Detectron2's NaiveSyncBatchNorm averages the
    processes' means without their counts, and takes the variance as E[x^2] - E[x]^2, which at a mean
    of many deviations has no correct digit left. Here both are sums over all pixels divided by their
    number, the variance of what is left when the mean is taken away; in float32 whatever comes in.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and dtype, normalised over all processes.

        Raises:
            ValueError: in training, if all processes together have one pixel.
        """
        x = input.float()
        if not self.training or comm.get_world_size() == 1:
            return super().forward(x).to(input.dtype)
        count = torch.tensor(float(x[:, 0].numel()), device=x.device)
        dist.all_reduce(count)
        if count <= 1:
            raise ValueError("batch norm needs more than one pixel a channel in training")
        mean = differentiable_all_reduce(x.sum(dim=(0, 2, 3)) / count)
        centred = x - mean[:, None, None]
        variance = differentiable_all_reduce(centred.square().sum(dim=(0, 2, 3)) / count)
        self._update(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)

    @torch.no_grad()
    def _update(self, mean: Tensor, variance: Tensor) -> None:
        """The running statistics; the variance is the unbiased one, as in torch."""
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)


def norm_layer(norm: str | Callable[[int], nn.Module]) -> Callable[[int], nn.Module]:
    """Resolves a norm's name.

    ``"SyncBN"`` becomes plain batch norm in one process (so that it trains on a CPU), torch's
    SyncBatchNorm over nccl, and :class:`GlooSyncBatchNorm` over gloo, where torch's does not
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
            resolved = GlooSyncBatchNorm

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
