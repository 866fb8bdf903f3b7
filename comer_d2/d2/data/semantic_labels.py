"""The semantic label map of one image, from whichever file its record names."""

import os
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image, ImageOps

from ..errors import UserError
from .panoptic_png import VOID, read_panoptic_png

IGNORE_LABEL = 255  # of pixels that neither train nor count, wherever labels are in memory
UNKNOWN = -1  # in a table: a number that a file must not hold


class SemanticLabels:
    """Reads label maps of a registered dataset and refuses labels that are none of its classes.

    A record has `sem_seg_file_name`, a one-channel image of class numbers; or `pan_seg_file_name`
    and `segments_info`, COCO's panoptic format, whose segments of one class become one.

    The metadata say which numbers files hold: `label_in_file`, class -> number, by default 0, 1, ...
    without those that are ignored; `ignore_label` (255) and `ignored_in_file`, which are ignored.

    Args:
        dataset_name: a name in Detectron2's catalog.
    """

    def __init__(self, dataset_name: str) -> None:
        self.dataset_name = dataset_name

    @cached_property
    def _table(self) -> np.ndarray:
        metadata = MetadataCatalog.get(self.dataset_name)
        return class_table(
            len(metadata.get("stuff_classes") or metadata.thing_classes),
            [metadata.get("ignore_label", IGNORE_LABEL), *metadata.get("ignored_in_file", ())],
            metadata.get("label_in_file"),
        )

    def __call__(self, record: dict[str, Any]) -> np.ndarray:
        """Read the labels of one image.

        Args:
            record: a Detectron2 dataset dict.

        Returns:
            (h, w) uint8, classes, and `IGNORE_LABEL`.

        Raises:
            UserError: naming the file, when it is missing or holds what it must not.
        """
        if "sem_seg_file_name" in record:
            return self._from_labels(record["sem_seg_file_name"])
        return self._from_panoptic(record)

    def _from_labels(self, path: str) -> np.ndarray:
        found = read_label_map(path)
        labels = self._table[found]
        if (labels == UNKNOWN).any():
            wrong = np.unique(found[labels == UNKNOWN]).tolist()
            raise UserError(f"{path}: {describe_unknown(wrong, self._table)}")
        return labels.astype(np.uint8)

    def _from_panoptic(self, record: dict[str, Any]) -> np.ndarray:
        ids = read_segments(record)
        labels = np.full(ids.shape, IGNORE_LABEL, dtype=np.uint8)
        for segment in record["segments_info"]:
            labels[ids == segment["id"]] = segment["category_id"]
        return labels


def class_table(
    count: int, ignored: Sequence[int], label_in_file: Sequence[int] | None = None
) -> np.ndarray:
    """Number in a file -> class.

    Args:
        count: of classes.
        ignored: numbers in a file that are ignored.
        label_in_file: class -> number in a file; None: 0, 1, ... without the ignored ones.

    Returns:
        (256,) int16: classes, `IGNORE_LABEL`, and `UNKNOWN` for what must not be.

    Raises:
        UserError: more classes than a byte can tell apart.
    """
    if label_in_file is None:
        label_in_file = [label for label in range(256) if label not in ignored][:count]
    if len(label_in_file) < count or count > IGNORE_LABEL:
        raise UserError(f"{count} classes; label maps can have {IGNORE_LABEL}")
    table = np.full(256, UNKNOWN, dtype=np.int16)
    table[list(ignored)] = IGNORE_LABEL
    table[list(label_in_file)] = range(count)
    return table


def describe_unknown(labels: Sequence[int], table: np.ndarray) -> str:
    """What is wrong with labels that a table does not know."""
    known = np.flatnonzero((table != UNKNOWN) & (table != IGNORE_LABEL)).tolist()
    ignored = np.flatnonzero(table == IGNORE_LABEL).tolist()
    return (
        f"label {', '.join(map(str, labels[:5]))} is no class: the classes' labels are "
        f"{_ranges(known)} ({_ranges(ignored)}: ignored)"
    )


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 255] -> "0-2, 255"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def read_label_map(path: str | os.PathLike) -> np.ndarray:
    """File -> (h, w) uint8, upright. A palette's colours do not count, its numbers do.

    Raises:
        UserError: naming the file, if it is missing, no image of one channel, or a JPEG.
    """
    try:
        with Image.open(path) as image:
            packed = re.search(r"\bL;([24])", str(image.tile))  # Pillow stretches these to 0 to 255
            if image.mode not in ("L", "P") or packed:
                kind = f"{packed[1]} bits a pixel" if packed else f"mode {image.mode}"
                raise UserError(
                    f"{path}: label maps are images of one channel of 8 bits (mode L or P) whose "
                    f"values are class numbers, this one has {kind}"
                )
            if image.format == "JPEG":
                raise UserError(
                    f"{path}: a JPEG changes labels along every edge: write label maps as PNG"
                )
            return np.asarray(ImageOps.exif_transpose(image))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: the label map cannot be read ({error})") from error


def read_palette(path: str | os.PathLike) -> list[tuple[int, ...]]:
    """The colours (R, G, B) of a label map's numbers; none where it has no palette."""
    with Image.open(path) as image:
        if image.mode != "P" or image.palette is None or image.palette.mode != "RGB":
            return []
        colors = image.palette.palette
    return [tuple(colors[i : i + 3]) for i in range(0, len(colors) - 2, 3)]


def read_segments(record: dict[str, Any]) -> np.ndarray:
    """The segment ids of one image, checked against its `segments_info`.

    Args:
        record: a dataset dict with `pan_seg_file_name` and `segments_info`.

    Returns:
        (h, w) int32, 0 where there is no segment.

    Raises:
        UserError: naming the file, if it is missing, or the two disagree.
    """
    return read_present_segments(record)[0]


def read_present_segments(record: dict[str, Any]) -> tuple[np.ndarray, set[int]]:
    """As `read_segments`, and which ids have a pixel; 0 is none of them."""
    path = record["pan_seg_file_name"]
    try:
        ids = read_panoptic_png(path)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: the panoptic map cannot be read ({error})") from error
    present = set(np.unique(ids).tolist()) - {VOID}
    unknown = sorted(present - {segment["id"] for segment in record["segments_info"]})
    if unknown:
        raise UserError(f"{path}: segments {unknown[:5]} are not in its segments_info")
    return ids, present
