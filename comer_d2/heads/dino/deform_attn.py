"""Deformable attention from any queries to padded levels."""

import math

import torch
from torch import Tensor, nn

from comer_d2.ops import ms_deform_attn_fused

from ...layers.levels import Levels
from ...layers.linear import Linear


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention.

    Source: Sec. 4.1 of arXiv 2010.04159 (Deformable DETR).

    Args:
        dim: channels D of queries and values, a multiple of ``num_heads``.
        num_levels: levels L.
        num_heads: attention heads M.
        num_points: sampling points P per head and level.
    """

    def __init__(self, dim: int, num_levels: int, num_heads: int, num_points: int = 4) -> None:
        super().__init__()
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        self.sampling = Linear(dim, 3 * num_heads * num_levels * num_points)
        self.value_proj = Linear(dim, dim)
        self.output_proj = Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Offsets start on rings around the query, one direction a head, one radius a point."""
        nn.init.zeros_(self.sampling.weight)
        nn.init.zeros_(self.sampling.bias)
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        directions = torch.stack([angles.cos(), angles.sin()], dim=-1)
        directions = directions / directions.abs().amax(dim=-1, keepdim=True)
        radii = torch.arange(1, self.num_points + 1)
        ring = directions[:, None, None, :] * radii[None, None, :, None]
        ring = ring.expand(-1, self.num_levels, -1, -1).flatten()
        with torch.no_grad():
            self.sampling.bias[: len(ring)] = ring
        for proj in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(proj.weight)
            nn.init.zeros_(proj.bias)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        value: Tensor,
        levels: Levels,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Attends from queries to the tokens of a pyramid.

        Args:
            query: (B, Q, D).
            reference_points: (B or 1, Q, L or 1, 2 or 4) in [0, 1]. Points (x, y), around which
                offsets are in tokens of each level; or boxes (cx, cy, w, h), around whose centres an
                offset of ``num_points`` is half a side.
            value: (B, S, D), the tokens of all levels.
            levels: of these tokens.
            padding: (B, S) bool, True at tokens whose values read as zero.

        Returns:
            (B, Q, D).
        """
        sampling = self.sampling(query)
        if reference_points.shape[-1] == 4:
            reference_points, sides = reference_points.split(2, dim=-1)
            sampling = self.in_boxes(sampling, sides, levels)
        value = self.value_proj(value)
        if padding is not None:
            value = value.masked_fill(padding[..., None], 0)
        output = ms_deform_attn_fused(
            value.unflatten(-1, (self.num_heads, -1)),
            levels.spatial_shapes,
            sampling,
            reference_points,
        )
        return self.output_proj(output)

    def in_boxes(self, sampling: Tensor, sides: Tensor, levels: Levels) -> Tensor:
        """Scales offsets (B, Q, 3*M*L*P) relative to boxes of sides (B or 1, Q, L or 1, 2) to tokens."""
        samples = sampling.shape[-1] // 3
        offsets, logits = sampling.split([2 * samples, samples], dim=-1)
        offsets = offsets.unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2))
        # Filled, not made of a list: sizes stay free in torch.export.
        tokens = torch.stack(
            [
                torch.stack([sides.new_full((), width), sides.new_full((), height)])
                for height, width in levels.spatial_shapes
            ]
        )
        scale = sides * tokens / (2 * self.num_points)
        offsets = offsets * scale[:, :, None, :, None].to(offsets.dtype)
        return torch.cat([offsets.flatten(2), logits], dim=-1)
