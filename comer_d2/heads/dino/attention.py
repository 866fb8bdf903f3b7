"""Multi-head attention among queries."""

import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.linear import Linear


class MultiheadAttention(nn.Module):
    """Attention whose projections are modules, with a mask that heads can share.

    Args:
        dim: channels D, a multiple of ``num_heads``.
        num_heads: attention heads.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj = Linear(dim, dim)
        self.k_proj = Linear(dim, dim)
        self.v_proj = Linear(dim, dim)
        self.out_proj = Linear(dim, dim)
        for proj in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.xavier_uniform_(proj.weight)
            nn.init.zeros_(proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, allowed: Tensor | None = None
    ) -> Tensor:
        """Attends from (B, Q, D) to (B, N, D).

        Args:
            query: (B, Q, D).
            key: (B, N, D).
            value: (B, N, D).
            allowed: bool, broadcast to (B, heads, Q, N).

        Returns:
            (B, Q, D).
        """
        projected = (self.q_proj(query), self.k_proj(key), self.v_proj(value))
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in projected)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.out_proj(x.transpose(1, 2).flatten(2))
