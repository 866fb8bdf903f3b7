"""Multi-scale deformable attention between the levels of a token pyramid."""

import math

import torch
from torch import Tensor, nn

from comer_d2.ops import ms_deform_attn_fused

from .levels import Geometry
from .linear import Linear, linear


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention.

    Every query looks at ``num_points`` places on every level, at learned offsets from its reference
    point, and sums the values found there with learned weights.

    Source: Sec. 4.1 of arXiv 2010.04159 (Deformable DETR); the value ratio is ViT-Adapter's.

    Args:
        dim: channels D of queries and features.
        num_levels: levels of the pyramid.
        num_heads: attention heads M.
        num_points: sampling points per head and level.
        value_ratio: channels of the values in units of ``dim``.

    Raises:
        ValueError: if ``dim * value_ratio`` is not a multiple of ``num_heads``.
    """

    def __init__(
        self,
        dim: int,
        num_levels: int,
        num_heads: int,
        num_points: int = 4,
        value_ratio: float = 1.0,
    ) -> None:
        super().__init__()
        value_dim = int(dim * value_ratio)
        if value_dim % num_heads:
            raise ValueError(
                f"the {value_dim} value channels ({dim} x {value_ratio}) of deformable attention "
                f"must be a multiple of its {num_heads} heads: change deform_num_heads or "
                "deform_ratio"
            )
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        samples = num_heads * num_levels * num_points
        self.sampling_offsets = Linear(dim, samples * 2)
        self.attention_weights = Linear(dim, samples)
        self.value_proj = Linear(dim, value_dim)
        self.output_proj = Linear(value_dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start on rings around the query, one direction a head, one radius a point."""
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        radii = torch.arange(1, self.num_points + 1)
        ring = directions[:, None, None, :] * radii[None, None, :, None]
        ring = ring.expand(-1, self.num_levels, -1, -1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(ring.flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for proj in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(proj.weight)
            nn.init.zeros_(proj.bias)

    def forward(self, query: Tensor, feat: Tensor, geometry: Geometry) -> Tensor:
        """Attends from ``query`` to the levels of ``feat``.

        Args:
            query: (B, S, D), one query per token of the pyramid.
            feat: (B, S, D), the tokens of all levels.
            geometry: of these tokens.

        Returns:
            (B, S, D).
        """
        value = self.value_proj(feat).unflatten(-1, (self.num_heads, -1))
        output = ms_deform_attn_fused(
            value,
            geometry.spatial_shapes,
            self.offsets_and_logits(query),
            geometry.reference_points[None, :, None],
        )
        return self.output_proj(output)

    def offsets_and_logits(self, query: Tensor) -> Tensor:
        """Query (B, Q, D) -> (B, Q, 3*M*L*P): offsets in tokens, then logits of the weights."""
        # One matrix product instead of two; the parameters stay apart, as their names are known.
        linears = (self.sampling_offsets, self.attention_weights)
        weight = torch.cat([linear.weight for linear in linears])
        bias = torch.cat([linear.bias for linear in linears])
        return linear(query, weight, bias)
