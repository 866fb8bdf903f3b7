"""Checks of COCO's polygons and run lengths before anything rasterises them.

pycocotools does neither: a NaN or 1e9 in a polygon takes all of the machine's memory or ends the process, and run lengths
of another image are read beyond their end.
"""

from typing import Any

import numpy as np
import pycocotools.mask as mask_util

MAX_CHARACTERS = 6  # of one compressed number: 5 bits each, for 32 bits


def polygon_problem(polygon: Any, width: int, height: int) -> str | None:
    """Why a polygon cannot be used; None if it can.

    Args:
        polygon: should be [x0, y0, x1, y1, ...], at least three points.
        width: of the image, pixels.
        height: of the image, pixels.

    Returns:
        "form", "points" (fewer than three), "finite" or "far" (further outside than the image is large); or None.
    """
    if not isinstance(polygon, list):
        return "form"
    try:
        points = np.array(polygon)
        if points.dtype.kind == "U":  # NumPy reads numbers out of text, and training does not
            return "form"
        points = points.astype(np.float64)
    except (TypeError, ValueError):
        return "form"
    if points.ndim != 1 or len(points) % 2:
        return "form"
    if len(points) < 6:
        return "points"
    if not np.isfinite(points).all():
        return "finite"
    x, y = points[0::2], points[1::2]
    if x.min() < -width or x.max() > 2 * width or y.min() < -height or y.max() > 2 * height:
        return "far"
    return None


def rle_problem(rle: dict[str, Any], width: int, height: int) -> str | None:
    """Why run lengths cannot be used; None if they can.

    Args:
        rle: should have `size`, [height, width], and `counts`, compressed or not.
        width: of the image, pixels.
        height: of the image, pixels.

    Returns:
        "form", "size" (another one than the image's), "counts" (they do not fill it); or None.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list) or not isinstance(counts, (list, str)):
        return "form"
    if size != [height, width]:
        return "size"
    try:
        runs = (
            np.array(counts, dtype=np.int64) if isinstance(counts, list) else decode_counts(counts)
        )
    except (TypeError, ValueError, OverflowError):
        return "counts"
    # Each by itself, too: their sum could wrap around.
    outside = (runs < 0) | (runs > width * height)
    if runs.ndim != 1 or outside.any() or runs.sum() != width * height:
        return "counts"
    return None


def box_of(segmentation: Any, width: int, height: int) -> list[float]:
    """The box around a sound segmentation.

    Args:
        segmentation: polygons or run lengths without a problem.
        width: of the image, pixels.
        height: of the image, pixels.

    Returns:
        [x, y, width, height] in pixels, within the image.
    """
    if isinstance(segmentation, dict):
        if isinstance(segmentation["counts"], list):
            segmentation = mask_util.frPyObjects(segmentation, height, width)
        return mask_util.toBbox(segmentation).tolist()
    low, high = [], []
    for start, side in ((0, width), (1, height)):
        numbers = [number for polygon in segmentation for number in polygon[start::2]]
        low.append(min(max(min(numbers), 0), side))
        high.append(min(max(max(numbers), 0), side))
    return [*low, high[0] - low[0], high[1] - low[1]]


def overlap(box: list[float], other: list[float]) -> float:
    """IoU of two boxes [x, y, width, height]."""
    common = 1.0
    for start, side in ((0, 2), (1, 3)):
        end = min(box[start] + box[side], other[start] + other[side])
        common *= max(end - max(box[start], other[start]), 0)
    union = box[2] * box[3] + other[2] * other[3] - common
    return common / union if union > 0 else 0.0


def decode_counts(counts: str) -> np.ndarray:
    """Run lengths out of COCO's compressed text.

    Each number is written 5 bits a character, lowest first, 32 more where another follows; from the fourth on it is the
    difference to the one before the last.

    Args:
        counts: the text.

    Returns:
        (n,) int64.

    Raises:
        ValueError: the text is none that COCO's compression gives.
    """
    codes = np.frombuffer(counts.encode("ascii"), dtype=np.uint8).astype(np.int64) - 48
    if not len(codes) or (codes < 0).any() or (codes > 63).any() or codes[-1] & 32:
        raise ValueError("no compressed run lengths")
    last = (codes & 32) == 0
    number = np.cumsum(last) - last  # of which each character is a part
    starts = np.flatnonzero(np.concatenate([[True], last[:-1]]))
    place = np.arange(len(codes)) - starts[number]
    if place.max() > MAX_CHARACTERS:
        raise ValueError("a run length of more than 32 bits")
    values = np.zeros(len(starts), dtype=np.int64)
    np.add.at(values, number, (codes & 31) << (5 * place))
    negative = (codes[last] & 16) > 0
    values -= np.where(negative, np.int64(1) << (5 * (place[last] + 1)), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
