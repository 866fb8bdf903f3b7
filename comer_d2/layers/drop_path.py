"""Stochastic depth that torch.compile need not compile once for every rate."""

import torch
from timm.layers import DropPath as TimmDropPath
from torch import Tensor


class DropPath(TimmDropPath):
    """timm's ``DropPath``: drops a branch per sample, and scales up what is kept.

    A compiler would take each block's own rate for a constant, and compile every block anew. There the
    rate is a tensor, and the draws are other ones than eager's.

    Args:
        drop_prob: probability of dropping the branch.

    Raises:
        ValueError: if it is not in [0, 1].
    """

    def __init__(self, drop_prob: float = 0.0) -> None:
        if not 0 <= drop_prob <= 1:  # NaN, too
            raise ValueError(f"a drop path rate must be in [0, 1], got {drop_prob}")
        super().__init__(drop_prob)
        self.drops = drop_prob > 0
        self.keep_prob = torch.tensor(1 - drop_prob, device="cpu")  # one number is read anywhere

    def forward(self, x: Tensor) -> Tensor:
        """A branch's output (B, ...) -> the same shape."""
        if not torch.compiler.is_compiling():
            return super().forward(x)
        if not (self.drops and self.training):
            return x
        draws = torch.rand(len(x), *(1,) * (x.ndim - 1), device=x.device)
        return torch.where(draws < self.keep_prob, x / self.keep_prob.to(x.dtype), 0)
