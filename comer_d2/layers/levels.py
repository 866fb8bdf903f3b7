"""The three token levels of ViT-CoMer: their sizes, their maps, their reference points."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


@dataclass(frozen=True)
class Levels:
    """Sizes of the CNN token levels (strides 8, 16, 32) for one image size.

    The CNN branch is one tensor of tokens ``c`` (B, S, D): each level row by row, finest level
    first. This class is the only place that knows where a level begins.

    Args:
        spatial_shapes: (H, W) of every level, as Python ints.
    """

    spatial_shapes: tuple[tuple[int, int], ...]

    @classmethod
    def around(cls, height: int, width: int) -> "Levels":
        """Levels around a ViT map of (height, width) tokens: twice, once and half its size."""
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

    def add_vit(self, tokens: Tensor, vit_tokens: Tensor) -> Tensor:
        """Adds ViT tokens (B, H*W, D) to the stride-16 part of tokens (B, S, D)."""
        fine, middle, coarse = self.split(tokens)
        return torch.cat([fine, middle + vit_tokens, coarse], dim=1)

    def geometry(self, device: torch.device, dtype: torch.dtype = torch.float32) -> "Geometry":
        """What deformable attention needs to know; computed once per forward, shared by all layers.

        Args:
            device: of the tokens.
            dtype: of the tokens, but at least float32: a bfloat16 location is off by up to half a
                pixel on a 128 wide level.
        """
        dtype = torch.promote_types(dtype, torch.float32)
        centres = []
        for h, w in self.spatial_shapes:
            y = (torch.arange(h, device=device, dtype=dtype) + 0.5) / h
            x = (torch.arange(w, device=device, dtype=dtype) + 0.5) / w
            centres.append(torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).flatten(0, 1))
        return Geometry(self.spatial_shapes, torch.cat(centres))


class Geometry(NamedTuple):
    """Where the queries of deformable attention are, when queries and values are the same tokens.

    Args:
        spatial_shapes: (H, W) of every level, as Python ints.
        reference_points: (S, 2), the centre of every token's own cell in its own level as
            (x, y) in [0, 1]; the same point serves all levels.
    """

    spatial_shapes: tuple[tuple[int, int], ...]
    reference_points: Tensor


def tokens_to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (B, H*W, D) -> a channels-last view (B, D, H, W)."""
    return tokens.unflatten(1, (height, width)).permute(0, 3, 1, 2)


def map_to_tokens(feature: Tensor) -> Tensor:
    """Map (B, D, H, W) -> tokens (B, H*W, D); a view if the map is channels-last."""
    return feature.permute(0, 2, 3, 1).flatten(1, 2)
