"""What every model here does to its images first: batches, padded and never cut."""

from collections.abc import Sequence
from typing import Any

from detectron2.modeling import Backbone
from detectron2.structures import ImageList
from torch import Tensor, nn

from ..errors import UserError


def prepare_images(
    records: list[dict[str, Any]], backbone: Backbone, mean: Tensor, std: Tensor
) -> ImageList:
    """Images on the model's device, normalised, padded with zeros as the backbone asks.

    Args:
        records: `image` (3, h, w) of each.
        backbone: says what sides have to be multiples of, or that they are squares.
        mean: (3, 1, 1).
        std: (3, 1, 1).

    Returns:
        The batch (B, 3, H, W), with the sizes before padding.
    """
    images = [(record["image"].to(mean.device) - mean) / std for record in records]
    return batch_images(images, backbone)


def batch_images(images: Sequence[Tensor], backbone: Backbone, pad_value: float = 0.0) -> ImageList:
    """Detectron2's ``ImageList.from_tensors``, for images of any size.

    That one takes the square of ``padding_constraints`` as the batch's size whatever the images are,
    and pads larger ones by a negative number: it cuts them. Here the square grows with them.

    Args:
        images: (..., h, w) each.
        backbone: whose ``size_divisibility`` and ``padding_constraints`` hold.
        pad_value: of the added pixels, at the right and at the bottom.

    Returns:
        The batch (B, ..., H, W), with the sizes before padding.
    """
    constraints = dict(backbone.padding_constraints)
    if constraints.get("square_size", 0) > 0:
        sides = [side for image in images for side in image.shape[-2:]]
        constraints["square_size"] = max(constraints["square_size"], *sides)
    return ImageList.from_tensors(list(images), backbone.size_divisibility, pad_value, constraints)


def refuse_to_cut(model: nn.Module) -> None:
    """Let one of Detectron2's own models, which cut images, say so instead.

    Args:
        model: any model; those of this project use `batch_images` and are left alone.
    """
    constraints = getattr(getattr(model, "backbone", None), "padding_constraints", {})
    square = constraints.get("square_size", 0)
    name = type(model).__name__
    if square <= 0 or not type(model).__module__.startswith("detectron2."):
        return

    def check(model: nn.Module, arguments: tuple[list[dict[str, Any]], ...]) -> None:
        for record in arguments[0]:
            height, width = record["image"].shape[-2:]
            if max(height, width) > square:
                raise UserError(
                    f"image '{record.get('file_name', '?')}' has {width} x {height} pixels, more than "
                    f"square_pad={square}, and Detectron2's {name} would cut it: use the class of "
                    "the same name in comer_d2.d2.modeling if there is one, set square_pad=0, or "
                    "let the data's augmentations make images smaller"
                )

    model.register_forward_pre_hook(check)
