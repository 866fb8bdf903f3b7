"""The semantic label map of one image, from whichever file its record names."""

from functools import cached_property
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from PIL import Image

from ..errors import UserError
from .panoptic_png import VOID, read_panoptic_png

IGNORE_LABEL = 255  # pixels that neither train nor count


class SemanticLabels:
    """Reads label maps of a registered dataset and refuses labels that are none of its classes.

    A record has `sem_seg_file_name`, a one-channel image of class numbers; or `pan_seg_file_name`
    and `segments_info`, COCO's panoptic format, whose segments of one class become one.

    The numbers in a file are the classes' own, unless the metadata has `label_in_file`, class ->
    number in the file. Number `ignore_label` of the metadata (255) is ignored, and so are numbers
    in its `ignored_in_file`.

    Args:
        dataset_name: a name in Detectron2's catalog.
    """

    def __init__(self, dataset_name: str) -> None:
        self.dataset_name = dataset_name

    @property
    def ignore_label(self) -> int:
        """The number of pixels that neither train nor count, in what is returned."""
        return MetadataCatalog.get(self.dataset_name).get("ignore_label", IGNORE_LABEL)

    @cached_property
    def _class_of(self) -> np.ndarray:
        """(256,) int16: number in a file -> class, `ignore_label`, or -1 for what must not be."""
        metadata = MetadataCatalog.get(self.dataset_name)
        count = len(metadata.get("stuff_classes") or metadata.thing_classes)
        if count > IGNORE_LABEL:
            raise UserError(
                f"data set '{self.dataset_name}' has {count} classes; label maps can have "
                f"{IGNORE_LABEL}"
            )
        table = np.full(256, -1, dtype=np.int16)
        table[[self.ignore_label, *metadata.get("ignored_in_file", ())]] = self.ignore_label
        table[list(metadata.get("label_in_file", range(count)))] = range(count)
        return table

    def __call__(self, record: dict[str, Any]) -> np.ndarray:
        """Read the labels of one image.

        Args:
            record: a Detectron2 dataset dict.

        Returns:
            (h, w) uint8, classes, and `ignore_label`.

        Raises:
            UserError: naming the file, when it is missing or holds what it must not.
        """
        if "sem_seg_file_name" in record:
            return self._from_labels(record["sem_seg_file_name"])
        return self._from_panoptic(record)

    def _from_labels(self, path: str) -> np.ndarray:
        found = read_label_png(path)
        labels = self._class_of[found]
        if (labels < 0).any():
            wrong = np.unique(found[labels < 0]).tolist()
            known = np.flatnonzero(self._class_of >= 0).tolist()
            raise UserError(
                f"{path}: label {', '.join(map(str, wrong[:5]))} is no class of data set "
                f"'{self.dataset_name}', whose labels are {_ranges(known)} "
                f"({self.ignore_label}: ignored)"
            )
        return labels.astype(np.uint8)

    def _from_panoptic(self, record: dict[str, Any]) -> np.ndarray:
        ids = read_segments(record)
        labels = np.full(ids.shape, self.ignore_label, dtype=np.uint8)
        for segment in record["segments_info"]:
            labels[ids == segment["id"]] = segment["category_id"]
        return labels


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 255] -> "0-2, 255"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and parts[-1][-1] == number - 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def read_label_png(path: str) -> np.ndarray:
    """File -> (h, w) uint8. A palette's colours do not count, its numbers do.

    Raises:
        UserError: naming the file, if it is missing, or no image of one channel.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("L", "P"):
                raise UserError(
                    f"{path}: label maps are images of one channel of 8 bits (mode L or P), this "
                    f"one has mode {image.mode}"
                )
            return np.asarray(image)
    except OSError as error:
        raise UserError(f"{path}: the label map cannot be read ({error})") from error


def read_segments(record: dict[str, Any]) -> np.ndarray:
    """The segment ids of one image, checked against its `segments_info`.

    Args:
        record: a dataset dict with `pan_seg_file_name` and `segments_info`.

    Returns:
        (h, w) int32, 0 where there is no segment.

    Raises:
        UserError: naming the file, if it is missing, or the two disagree.
    """
    path = record["pan_seg_file_name"]
    try:
        ids = read_panoptic_png(path)
    except OSError as error:
        raise UserError(f"{path}: the panoptic map cannot be read ({error})") from error
    listed = {segment["id"] for segment in record["segments_info"]}
    unknown = sorted(set(np.unique(ids).tolist()) - listed - {VOID})
    if unknown:
        raise UserError(f"{path}: segments {unknown[:5]} are not in its segments_info")
    return ids
