"""Multi-scale deformable attention between the levels of a token pyramid."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comer_d2.ops import ms_deform_attn

from .levels import Geometry


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
        self.sampling_offsets = nn.Linear(dim, samples * 2)
        self.attention_weights = nn.Linear(dim, samples)
        self.value_proj = nn.Linear(dim, value_dim)
        self.output_proj = nn.Linear(value_dim, dim)
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
        offsets, weights = self.offsets_and_weights(query)
        locations = (
            geometry.reference_points[:, None, None, None, :]
            + offsets * geometry.cell_sizes[:, None, :]
        )
        output = ms_deform_attn(value, geometry.spatial_shapes, locations, weights)
        return self.output_proj(output)

    def offsets_and_weights(self, query: Tensor) -> tuple[Tensor, Tensor]:
        """Query (B, Q, D) -> offsets (B, Q, M, L, P, 2) in tokens, weights (B, Q, M, L, P) that sum to 1.

        Both at least in float32: a half-precision location is off by up to half a pixel on a
        128 wide level.
        """
        # One matrix product instead of two; the parameters stay apart, as their names are known.
        linears = (self.sampling_offsets, self.attention_weights)
        weight = torch.cat([linear.weight for linear in linears])
        bias = torch.cat([linear.bias for linear in linears])
        offsets, logits = F.linear(query, weight, bias).split(
            [linear.out_features for linear in linears], dim=-1
        )
        dtype = torch.promote_types(query.dtype, torch.float32)
        offsets = offsets.to(dtype).unflatten(
            -1, (self.num_heads, self.num_levels, self.num_points, 2)
        )
        weights = logits.to(dtype).unflatten(-1, (self.num_heads, -1)).softmax(dim=-1)
        return offsets, weights.unflatten(-1, (self.num_levels, self.num_points))
