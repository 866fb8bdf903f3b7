"""A pyramid of maps as one sequence of tokens: sizes, maps, reference points."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .resize import resize_bilinear


@dataclass(frozen=True)
class Levels:
    """Sizes of the levels of a token pyramid, for one image size.

    The pyramid is one tensor of tokens (B, S, D): each level row by row, one level after the other.
    This class is the only place that knows where a level begins. Make one per forward pass: it
    remembers the tensors that it gave.

    Args:
        spatial_shapes: (H, W) of every level, as Python ints.
    """

    spatial_shapes: tuple[tuple[int, int], ...]
    _given: dict[tuple[str, torch.device, torch.dtype], Tensor] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @classmethod
    def around(cls, height: int, width: int) -> "Levels":
        """ViT-CoMer's three levels, strides 8, 16 and 32: twice, once and half the ViT's map."""
        return cls(((height * 2, width * 2), (height, width), (height // 2, width // 2)))

    @property
    def sizes(self) -> list[int]:
        """Number of tokens of each level."""
        return [h * w for h, w in self.spatial_shapes]

    def split(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """Tokens (B, S, D) -> one view (B, H*W, D) per level."""
        return tokens.split(self.sizes, dim=1)

    def maps(self, tokens: Tensor) -> list[Tensor]:
        """Tokens (B, S, D) -> one channels-last view (B, D, H, W) per level."""
        return [
            tokens_to_map(part, h, w)
            for part, (h, w) in zip(self.split(tokens), self.spatial_shapes, strict=True)
        ]

    def merge(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, D, H, W) -> tokens (B, S, D); the inverse of :meth:`maps`."""
        return torch.cat([map_to_tokens(m) for m in maps], dim=1)

    def add(self, tokens: Tensor, others: Tensor, level: int) -> Tensor:
        """Adds tokens (B, H*W, D) of one level to that part of tokens (B, S, D), whose type stays."""
        return add_rows(tokens, others, sum(self.sizes[:level]))

    def fuse(self, tokens: Tensor, level: int) -> Tensor:
        """Brings all levels of tokens (B, S, D) to the size of one and sums them.

        Finer levels, of twice the size each, are averaged; coarser ones are resized bilinearly.

        Returns:
            (B, D, H, W) of that level.
        """
        maps = self.maps(tokens)
        for i in range(level):
            maps[i] = F.avg_pool2d(maps[i], 2 ** (level - i))
        for i in range(level + 1, len(maps)):
            maps[i] = resize_bilinear(maps[i], maps[level])
        total = maps[0]
        for m in maps[1:]:
            total = total + m
        return total

    def reference_points(self, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
        """Where queries look from that are the pyramid's own tokens: the centres of their cells.

        Computed once for all layers of a forward pass.

        Args:
            device: of the tokens.
            dtype: of the tokens, but at least float32: a bfloat16 location is off by up to half a
                pixel on a 128 wide level.

        Returns:
            (1, S, 1, 2) as (x, y) in [0, 1], the same point on all levels.
        """
        dtype = torch.promote_types(dtype, torch.float32)
        key = ("reference_points", device, dtype)
        if key not in self._given:
            centres = []
            for h, w in self.spatial_shapes:
                y = (torch.arange(h, device=device, dtype=dtype) + 0.5) / h
                x = (torch.arange(w, device=device, dtype=dtype) + 0.5) / w
                grid = torch.meshgrid(x, y, indexing="xy")
                centres.append(torch.stack(grid, dim=-1).flatten(0, 1))
            self._given[key] = torch.cat(centres)[None, :, None]
        return self._given[key]

    def widths_and_heights(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """(L, 2), the (W, H) of every level in tokens."""
        key = ("widths_and_heights", device, dtype)
        if key not in self._given:
            # Filled, not made of a list: sizes stay free in torch.export.
            sizes = [
                torch.full((), size, device=device, dtype=dtype)
                for h, w in self.spatial_shapes
                for size in (w, h)
            ]
            self._given[key] = torch.stack(sizes).unflatten(0, (-1, 2))
        return self._given[key]


class AddRows(torch.autograd.Function):
    """:func:`add_rows`. The gradient of split, add and cat would be copied; this one is passed on."""

    @staticmethod
    def forward(tokens: Tensor, rows: Tensor, start: int) -> Tensor:
        result = tokens.clone()
        result[:, start : start + rows.shape[1]].add_(rows)
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        _, rows, start = inputs
        ctx.rows, ctx.dtype = slice(start, start + rows.shape[1]), rows.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        return grad, grad[:, ctx.rows].to(ctx.dtype), None


def add_rows(tokens: Tensor, rows: Tensor, start: int) -> Tensor:
    """Adds to some neighbouring tokens.

    Args:
        tokens: (B, S, D).
        rows: (B, N, D), in any type.
        start: the first token that is added to.

    Returns:
        (B, S, D) in the type of ``tokens``.
    """
    if (
        rows.shape[1] == tokens.shape[1]
        and torch.promote_types(tokens.dtype, rows.dtype) == tokens.dtype
    ):
        return tokens + rows
    return AddRows.apply(tokens, rows, start)


def without_prefix(x: Tensor, count: int) -> Tensor:
    """The last ``count`` of the tokens (B, P + count, D), those of the map."""
    return x if x.shape[1] == count else x[:, -count:]


def tokens_to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, H*W, D) -> a channels-last view (B, D, H, W)."""
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def map_to_tokens(feature: Tensor) -> Tensor:
    """Map (B, D, H, W) -> tokens (B, H*W, D); a view if the map is channels-last."""
    return feature.permute(0, 2, 3, 1).flatten(1, 2)
