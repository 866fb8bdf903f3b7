"""Multi-scale deformable attention of queries to the levels of a token pyramid."""

import math

import torch
from torch import Tensor, nn

from comer_d2.ops import ms_deform_attn_fused

from .levels import Levels
from .linear import Linear


class MSDeformAttn(nn.Module):
    """Multi-scale deformable attention.

    Every query looks at ``num_points`` places on every level, at offsets from its reference point,
    and sums the values found there with weights; one linear layer of the query, ``sampling``, gives
    both. The queries need not be the tokens that the values are of.

    Source: Sec. 4.1 and A.4 of arXiv 2010.04159 (Deformable DETR); the value ratio is
    ViT-Adapter's.

    Args:
        dim: channels D of queries and values.
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
                f"must be a multiple of its {num_heads} heads: change num_heads (of a ViT-CoMer: "
                "deform_num_heads or deform_ratio)"
            )
        self.num_levels = num_levels
        self.num_heads = num_heads
        self.num_points = num_points
        samples = num_heads * num_levels * num_points
        # Offsets and logits of the weights, which have layers of their own in Deformable DETR.
        self.sampling = Linear(dim, samples * 3)
        self.value_proj = Linear(dim, value_dim)
        self.output_proj = Linear(value_dim, dim)
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
            reference_points: (B or 1, Q, L or 1, 2 or 4) in [0, 1]; 1 stands for all. Points (x, y),
                around which offsets are in tokens of each level; or boxes (centre x, centre y,
                width, height), around whose centres an offset of ``num_points`` is half a side.
            value: (B, S, D), the tokens of all levels.
            levels: of these tokens.
            padding: (B, S) bool, True at tokens whose values read as zero.

        Returns:
            (B, Q, D).

        Raises:
            ValueError: for reference points that are neither points nor boxes.
        """
        sampling = self.sampling(query)
        if reference_points.shape[-1] == 4:
            reference_points, sizes = reference_points.split(2, dim=-1)
            sampling = self.in_boxes(sampling, sizes, levels)
        elif reference_points.shape[-1] != 2:
            raise ValueError(
                "reference_points must have shape (B or 1, Q, L or 1, 2 or 4), got "
                f"{tuple(reference_points.shape)}"
            )
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

    def in_boxes(self, sampling: Tensor, sizes: Tensor, levels: Levels) -> Tensor:
        """Scales offsets that are relative to boxes to tokens of each level.

        Args:
            sampling: (B, Q, 3*M*L*P), offsets, then logits.
            sizes: (B or 1, Q, L or 1, 2), width and height of the boxes, the image's being 1.
            levels: of the values.

        Returns:
            (B, Q, 3*M*L*P).
        """
        samples = sampling.shape[-1] // 3
        offsets, logits = sampling.split([2 * samples, samples], dim=-1)
        offsets = offsets.unflatten(-1, (self.num_heads, self.num_levels, self.num_points, 2))
        tokens = levels.widths_and_heights(sizes.device, sizes.dtype)
        scale = sizes * tokens / (2 * self.num_points)
        offsets = offsets * scale[:, :, None, :, None].to(offsets.dtype)
        return torch.cat([offsets.flatten(2), logits], dim=-1)
