"""COCO's panoptic format: a PNG whose colours are segment ids."""

import os
from pathlib import Path

import numpy as np
from PIL import Image

VOID = 0  # the id of pixels without a segment


def rgb_to_id(rgb: np.ndarray) -> np.ndarray:
    """Colours -> segment ids, ``R + 256 G + 256**2 B``.

    Args:
        rgb: (..., 3) uint8.

    Returns:
        (...) int32.
    """
    rgb = rgb.astype(np.int32)
    return rgb[..., 0] + 256 * rgb[..., 1] + 256**2 * rgb[..., 2]


def id_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Segment ids -> colours; the inverse of :func:`rgb_to_id`.

    Args:
        ids: (...) int, 0 to 256**3 - 1.

    Returns:
        (..., 3) uint8.

    Raises:
        ValueError: an id has no colour.
    """
    if ids.size and (ids.min() < 0 or ids.max() >= 256**3):
        raise ValueError(f"segment ids must be 0 to {256**3 - 1}, got {ids.min()} to {ids.max()}")
    return np.stack([ids % 256, ids // 256 % 256, ids // 256**2], axis=-1).astype(np.uint8)


def read_panoptic_png(path: str | os.PathLike) -> np.ndarray:
    """File -> (h, w) int32 segment ids."""
    with Image.open(path) as image:
        return rgb_to_id(np.asarray(image.convert("RGB")))


def write_panoptic_png(ids: np.ndarray, path: str | os.PathLike) -> None:
    """(h, w) segment ids -> file, written under another name first."""
    path = Path(path)
    part = path.with_name(f".{path.name}.part")
    Image.fromarray(id_to_rgb(ids)).save(part, format="PNG")
    os.replace(part, path)
