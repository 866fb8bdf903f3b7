"""What an exported model does to its images first."""

import torch.nn.functional as F
from torch import Tensor, nn


class Images(nn.Module):
    """Normalises images, and pads them to the square that the backbone may ask for.

    Args:
        model: a Detectron2 model: its `pixel_mean`, `pixel_std` and `backbone` say what is done.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.register_buffer("pixel_mean", model.pixel_mean, persistent=False)
        self.register_buffer("pixel_std", model.pixel_std, persistent=False)
        self.divisor = max(model.backbone.size_divisibility, 1)
        self.square = model.backbone.padding_constraints.get("square_size", 0)

    def forward(self, images: Tensor) -> Tensor:
        """Pixels from 0 to 255 (B, 3, H, W) -> what the backbone reads.

        Raises:
            ValueError: sides that are larger than the square or, without a square, do not divide by
                what the backbone's must.
        """
        height, width = images.shape[-2:]
        images = (images - self.pixel_mean) / self.pixel_std
        if self.square:
            if height > self.square or width > self.square:
                raise ValueError(
                    f"images of {height} x {width} pixels are larger than the model's square_pad="
                    f"{self.square}"
                )
            return F.pad(images, (0, self.square - width, 0, self.square - height))
        if height % self.divisor or width % self.divisor:
            raise ValueError(
                f"images of {height} x {width} pixels: sides must be multiples of {self.divisor}; "
                "pad them at the right and at the bottom"
            )
        return images
