"""The token levels of a batch of images of unequal sizes, and where each image ends in them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...layers.levels import Levels
from ...layers.positions import sine_encoding

POSITION_TEMPERATURE = 20
PROPOSAL_SIDE = 0.05  # of the image, on the finest level


@dataclass(frozen=True)
class Canvas:
    """Token levels, and the part of them that every image covers.

    Images are padded at the right and at the bottom to one size. Boxes and positions are relative to
    the image, not to the padded canvas, so that they mean the same in any batch.

    Source: the valid ratios of arXiv 2010.04159 (Deformable DETR).

    Args:
        levels: sizes of the L levels, S tokens in all.
        valid: (B, L, 2) float32, columns and rows of every level that an image covers; None if all
            images fill the canvas.
        device: of the tokens.
    """

    levels: Levels
    valid: Tensor | None
    device: torch.device

    @classmethod
    def around(
        cls,
        levels: Levels,
        padded_size: Sequence[int],
        image_sizes: Sequence[Sequence[int]] | None,
        device: torch.device,
    ) -> "Canvas":
        """The canvas of a batch.

        Args:
            levels: sizes of the levels.
            padded_size: (H, W) of the batch in pixels.
            image_sizes: (h, w) of every image in pixels; None: all are as large as the batch.
            device: of the tokens.
        """
        height, width = padded_size
        # In torch.export sizes may be symbols: whether they are the padded ones is not to be decided.
        if image_sizes is None or (
            not torch.compiler.is_exporting()
            and all(tuple(size) == (height, width) for size in image_sizes)
        ):
            return cls(levels, None, device)
        # Rounded up: a token belongs to the image if the first pixel of its cell does.
        valid = [
            [
                (-(-w * columns // width), -(-h * rows // height))
                for rows, columns in levels.spatial_shapes
            ]
            for h, w in image_sizes
        ]
        return cls(levels, torch.tensor(valid, dtype=torch.float32, device=device), device)

    def padding(self) -> Tensor | None:
        """(B, S) bool, True at the tokens of padding; None without any."""
        return None if self.valid is None else (self._indices() >= self._extents()).any(dim=-1)

    def centres(self) -> Tensor:
        """(B or 1, S, 2) float32, the centre of every token's cell as (x, y); [0, 1] is the image."""
        return (self._indices() + 0.5) / self._extents()

    def positions(self, dim: int) -> Tensor:
        """Sine encoding of every token's place, which counts from 1 and is 2 pi at the image's end.

        Args:
            dim: channels, a multiple of 4: half of them for y, half for x.

        Returns:
            (B or 1, S, dim) float32.
        """
        places = (self._indices() + 1) / (self._extents() + 1e-6) * (2 * torch.pi)
        return sine_encoding(places.flip(-1), dim // 2, POSITION_TEMPERATURE).flatten(-2)

    def proposals(self) -> Tensor:
        """(B or 1, S, 4) float32: a square (cx, cy, w, h) at every token, twice as large a level."""
        sides = self._per_level(PROPOSAL_SIDE * 2**i for i in range(len(self.levels.sizes)))
        centres = self.centres()
        return torch.cat([centres, sides[:, None].expand_as(centres)], dim=-1)

    def on_levels(self, points: Tensor) -> Tensor:
        """Turns points of the image into points of every padded level.

        Args:
            points: (B or 1, Q, 2 or 4) as (x, y) or (cx, cy, w, h); [0, 1] is the image.

        Returns:
            (B or 1, Q, L or 1, 2 or 4), as deformable attention takes reference points.
        """
        if self.valid is None:
            return points[:, :, None]
        sizes = [(columns, rows) for rows, columns in self.levels.spatial_shapes]
        ratios = self.valid / self.valid.new_tensor(sizes)
        return points[:, :, None] * ratios.repeat(1, 1, points.shape[-1] // 2)[:, None]

    def _indices(self) -> Tensor:
        """(S, 2) float32, column and row of every token in its level."""
        levels = []
        for rows, columns in self.levels.spatial_shapes:
            axes = (
                torch.arange(n, dtype=torch.float32, device=self.device) for n in (columns, rows)
            )
            levels.append(torch.stack(torch.meshgrid(*axes, indexing="xy"), dim=-1).flatten(0, 1))
        return torch.cat(levels)

    def _extents(self) -> Tensor:
        """(B or 1, S, 2) float32, columns and rows that the image covers in every token's level."""
        if self.valid is None:
            shapes = self.levels.spatial_shapes
            return torch.stack(
                [self._per_level(w for _, w in shapes), self._per_level(h for h, _ in shapes)], -1
            )[None]
        per_level = zip(self.valid.split(1, dim=1), self.levels.sizes, strict=True)
        return torch.cat([valid.expand(-1, size, -1) for valid, size in per_level], dim=1)

    def _per_level(self, numbers: Iterable[float]) -> Tensor:
        """One number a level -> (S,) float32, one a token."""
        pairs = zip(self.levels.sizes, numbers, strict=True)
        return torch.cat(
            [
                torch.full((size,), number, dtype=torch.float32, device=self.device)
                for size, number in pairs
            ]
        )
