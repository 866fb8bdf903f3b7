"""What an exported model does to its images first, and to boxes last."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Size = tuple[int, int]  # height and width in pixels


class Prepared(NamedTuple):
    """What a backbone reads.

    Attributes:
        pixels: (B, 3, H, W), normalised.
        size: of the images in it, at the top left; the rest is padding.
        given: of the images as they came in, in whose pixels boxes and masks go out.
    """

    pixels: Tensor
    size: Size
    given: Size

    @property
    def padded(self) -> Size:
        """Of `pixels`."""
        height, width = self.pixels.shape[-2:]
        return height, width

    def boxes(self, boxes: Tensor) -> Tensor:
        """Boxes in the pixels of `size`, (B, N, 4) -> in those of `given`."""
        if self.size is self.given:
            return boxes
        scale = [
            torch.full((), given, dtype=boxes.dtype, device=boxes.device) / seen
            for seen, given in zip(self.size[::-1], self.given[::-1], strict=True)
        ]
        return boxes * torch.stack(scale * 2)


class Images(nn.Module):
    """Normalises images, and pads them to the square that the backbone may ask for.

    Args:
        model: a Detectron2 model: its `pixel_mean`, `pixel_std` and `backbone` say what is done.
        fit: (H, W) that images of any size are resized to fit into, as photos are for the test data; the
            rest is padding. None: images come as large as the backbone is to see them.

    Raises:
        ValueError: `fit` is no size that the backbone takes.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: nn.Module, fit: Size | None = None) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", model.pixel_mean, persistent=False)
        self.register_buffer("pixel_std", model.pixel_std, persistent=False)
        self.divisor = max(model.backbone.size_divisibility, 1)
        self.square = model.backbone.padding_constraints.get("square_size", 0)
        self.fit = fit
        if fit is not None:
            self._check(*fit)

    @property
    def pads(self) -> bool:
        """Whether what the backbone reads can be larger than the images in it."""
        return bool(self.square) or self.fit is not None

    def forward(self, images: Tensor) -> Prepared:
        """Pixels from 0 to 255 (B, 3, H, W) -> what the backbone reads.

        Raises:
            ValueError: sides that are larger than the square or, without a square, do not divide by
                what the backbone's must.
        """
        given = size = tuple(images.shape[-2:])
        if self.fit is not None:
            size = fitting(given, self.fit)
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        else:
            self._check(*size)
        images = (images - self.pixel_mean) / self.pixel_std
        if self.pads:
            height, width = (self.square, self.square) if self.square else self.fit
            images = F.pad(images, (0, width - size[1], 0, height - size[0]))
        return Prepared(images, size, given)

    def _check(self, height: int, width: int) -> None:
        if self.square:
            if height > self.square or width > self.square:
                raise ValueError(
                    f"images of {height} x {width} pixels are larger than the model's square_pad="
                    f"{self.square}"
                )
        elif height % self.divisor or width % self.divisor:
            raise ValueError(
                f"images of {height} x {width} pixels: sides must be multiples of {self.divisor}; "
                "pad them at the right and at the bottom"
            )


def fitting(size: Size, box: Size) -> Size:
    """The largest size of the same shape that fits into a box, rounded, from two pixels on."""
    (height, width), (highest, widest) = size, box
    # In whole numbers, which stay free in torch.export; to it, one pixel is a shape of its own.
    tall = (2 * height * widest + width) // (2 * width)
    wide = (2 * width * highest + height) // (2 * height)
    return (
        torch.sym_max(2, torch.sym_min(highest, tall)),
        torch.sym_max(2, torch.sym_min(widest, wide)),
    )
