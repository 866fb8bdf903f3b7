"""Whatever holds an image -> the RGB bytes that a model is given."""

import os

import numpy as np
import torch
from PIL import Image, ImageOps

from .data.images import MODES_OF_8_BITS, read_image
from .errors import UserError

ImageLike = str | os.PathLike | Image.Image | np.ndarray | torch.Tensor


def as_rgb(image: ImageLike) -> np.ndarray:
    """Turn an image into RGB bytes, or refuse what has no one meaning.

    Grey becomes three equal channels; an alpha channel is left out, as the training data's is.

    Args:
        image: path of a file; a Pillow image; an array (h, w), (h, w, 1), (h, w, 3) or (h, w, 4), or
            a tensor with the channels first, of uint8 or of floating-point values from 0 to 1.
            Files and Pillow images are turned upright where their EXIF data ask for it.

    Returns:
        (h, w, 3) uint8, RGB.

    Raises:
        UserError: it cannot be read, or holds other values.
    """
    if isinstance(image, (str, os.PathLike)):
        return np.array(read_image(image))  # which can be written, as the others
    if isinstance(image, Image.Image):
        return _of_picture(image)
    if isinstance(image, torch.Tensor):
        if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[0] not in (1, 3, 4)):
            raise UserError(
                f"a tensor of shape {tuple(image.shape)} is no image: give (3, h, w), (1, h, w), "
                "(4, h, w) or (h, w); several images as a list"
            )
        image = image.detach().cpu()
        image = (image.float() if image.is_floating_point() else image).numpy()
        image = image if image.ndim == 2 else image.transpose(1, 2, 0)
    if not isinstance(image, np.ndarray):
        raise UserError(
            f"an image is a path, a Pillow image, an array or a tensor, not {type(image).__name__}"
        )
    return _of_array(image)


def _of_picture(picture: Image.Image) -> np.ndarray:
    if picture.mode not in MODES_OF_8_BITS:
        raise UserError(
            f"the image has more than 8 bits a channel (Pillow's mode {picture.mode}), and which of its "
            "values are black and white is not known: convert it to 8 bits"
        )
    if picture.mode == "La":  # Pillow knows no other way from it
        picture = picture.convert("LA")
    return np.array(ImageOps.exif_transpose(picture).convert("RGB"))


def _of_array(image: np.ndarray) -> np.ndarray:
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise UserError(
            f"an array of shape {image.shape} is no image: give (h, w, 3) in RGB order, (h, w) or "
            "(h, w, 4); several images as a list"
        )
    if np.issubdtype(image.dtype, np.floating):
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):  # NaN fails too
            raise UserError(
                f"a floating-point image has values from 0 to 1, this one {low:g} to {high:g}: "
                "divide it by its range, or give uint8"
            )
        image = np.rint(image * 255).astype(np.uint8)
    if image.dtype != np.uint8:
        raise UserError(
            f"an image has uint8 values, or floating-point ones from 0 to 1, not {image.dtype}: "
            "scale it to 0 to 255 as the training images were, and give uint8"
        )
    channels = [0, 0, 0] if image.shape[2] == 1 else [0, 1, 2]
    return np.ascontiguousarray(image[:, :, channels])
