"""The encoder layer of Deformable DETR, which Mask2Former's pixel decoder and DINO have in common."""

import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.deform_attn import MSDeformAttn
from ..layers.levels import Levels
from ..layers.linear import Linear


class DeformableEncoderLayer(nn.Module):
    """Deformable self-attention among the tokens of several levels, feed-forward network, a norm behind each.

    Source: Sec. 4.1 of arXiv 2010.04159.

    Args:
        dim: channels D of a token.
        num_levels: levels L.
        num_heads: attention heads.
        num_points: sampling points per head and level.
        ffn_dim: hidden channels of the feed-forward network.
    """

    def __init__(
        self, dim: int, num_levels: int, num_heads: int, num_points: int, ffn_dim: int
    ) -> None:
        super().__init__()
        self.self_attn = MSDeformAttn(dim, num_levels, num_heads, num_points)
        self.norm1 = nn.LayerNorm(dim)
        self.linear1 = Linear(dim, ffn_dim)
        self.linear2 = Linear(ffn_dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        reference_points: Tensor,
        levels: Levels,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Attends from every token to all levels.

        Args:
            x: (B, S, D).
            position: broadcast to (B, S, D); added to the queries.
            reference_points: (B or 1, S, L or 1, 2).
            levels: sizes of the levels.
            padding: (B, S) bool, True at tokens that are not of the image; ``None``: all are.

        Returns:
            (B, S, D).
        """
        update = self.self_attn(x + position, reference_points, x, levels, padding)
        x = self.norm1(x + update)
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))
