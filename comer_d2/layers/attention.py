"""Attention of queries to tokens."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from .linear import Linear


class InputProjection(Linear):
    """One of q, k and v, initialised as its third of ``nn.MultiheadAttention``'s joint layer."""

    def reset_parameters(self) -> None:
        """Xavier-uniform, of a layer with three times the outputs; no bias."""
        bound = math.sqrt(6 / (self.in_features + 3 * self.out_features))
        nn.init.uniform_(self.weight, -bound, bound)
        nn.init.zeros_(self.bias)


class MultiheadAttention(nn.Module):
    """Multi-head attention with a mask that heads can share, and projections that are modules.

    (``nn.MultiheadAttention`` wants a copy of the mask for every head.)

    Args:
        dim: channels C, a multiple of ``num_heads``.
        num_heads: attention heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.out_proj = Linear(dim, dim)
        self.q_proj = InputProjection(dim, dim)
        self.k_proj = InputProjection(dim, dim)
        self.v_proj = InputProjection(dim, dim)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """Attends from queries to keys.

        Args:
            query: (B, Q, C).
            key: (B, N, C).
            value: (B, N, C).
            allowed: bool, broadcast to (B, heads, Q, N), True where attention is allowed.

        Returns:
            (B, Q, C).
        """
        q, k, v = (
            x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for x in (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        )
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.out_proj(x.transpose(1, 2).flatten(2))
