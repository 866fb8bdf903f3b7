"""DINO's encoder: deformable self-attention among the tokens of all levels."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..deformable_encoder_layer import DeformableEncoderLayer
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
            DeformableEncoderLayer(dim, num_levels, num_heads, num_points, ffn_dim)
            for _ in range(num_layers)
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
