"""What every detector here does to its images first."""

from typing import Any

from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from torch import Tensor


def prepare_images(
    records: list[dict[str, Any]], backbone: Backbone, mean: Tensor, std: Tensor
) -> ImageList:
    """Images on the model's device, normalised, padded with zeros as the backbone asks.

    Args:
        records: `image` (3, h, w) of each.
        backbone: says what sides have to be multiples of, or that they are squares.
        mean: (3, 1, 1).
        std: (3, 1, 1).
    """
    images = [(record["image"].to(mean.device) - mean) / std for record in records]
    return ImageList.from_tensors(
        images, backbone.size_divisibility, padding_constraints=backbone.padding_constraints
    )
