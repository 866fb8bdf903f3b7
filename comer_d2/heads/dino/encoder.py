"""DINO's encoder: deformable self-attention among the tokens of all levels."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...layers.deform_attn import MSDeformAttn
from ...layers.levels import Levels
from ...layers.linear import Linear
from .canvas import Canvas


class DINOEncoder(nn.Module):
    """Layers of deformable self-attention.

    Source: Sec. 4.1 of arXiv 2010.04159 (Deformable DETR).

    Args:
        dim: channels D of a token.
        num_levels: levels L.
        num_layers: layers.
        num_heads: attention heads.
        num_points: sampling points per head and level.
        ffn_dim: hidden channels of the feed-forward networks.
        use_act_checkpoint: compute each layer's activations again in the backward pass instead of
            keeping them.

    Raises:
        ValueError: without layers, nothing would tell the levels apart.
    """

    def __init__(
        self,
        *,
        dim: int = 256,
        num_levels: int = 4,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        ffn_dim: int = 2048,
        use_act_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers of the encoder must be at least 1, got {num_layers}")
        self.num_levels = num_levels
        self.use_act_checkpoint = use_act_checkpoint
        self.level_embed = nn.Parameter(torch.empty(num_levels, dim))
        nn.init.normal_(self.level_embed)
        self.layers = nn.ModuleList(
            EncoderLayer(dim, num_levels, num_heads, num_points, ffn_dim) for _ in range(num_layers)
        )

    def forward(self, x: Tensor, canvas: Canvas) -> Tensor:
        """Tokens (B, S, D) and where they are -> tokens (B, S, D)."""
        position = canvas.positions(x.shape[-1]) + torch.cat(
            [
                embed.expand(size, -1)
                for embed, size in zip(self.level_embed, canvas.levels.sizes, strict=True)
            ]
        )
        reference_points = canvas.on_levels(canvas.centres())
        padding = canvas.padding()
        for layer in self.layers:
            arguments = (x, position, reference_points, canvas.levels, padding)
            if self.use_act_checkpoint and self.training:
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
        return x


class EncoderLayer(nn.Module):
    """One post-norm layer; arguments as of :class:`DINOEncoder`."""

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
        padding: Tensor | None,
    ) -> Tensor:
        """Attends from every token to all levels.

        Args:
            x: (B, S, D).
            position: (B or 1, S, D), added to the queries.
            reference_points: (B or 1, S, L or 1, 2).
            levels: sizes of the levels.
            padding: (B, S) bool, True at tokens that are not of the image.

        Returns:
            (B, S, D).
        """
        update = self.self_attn(x + position, reference_points, x, levels, padding)
        x = self.norm1(x + update)
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))
