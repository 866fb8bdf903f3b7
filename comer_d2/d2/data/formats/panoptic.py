"""COCO's panoptic format, where all that is no object is one class."""

from collections.abc import Sequence
from pathlib import Path

from ..panoptic_from_instances import panoptic_from_instances
from .coco import write_coco
from .split import FormatError, Split


def write_panoptic(
    splits: Sequence[Split], output: Path, *, boxes: bool, background: str
) -> list[str]:
    """Write a json and a folder of PNGs a split, and the objects they are made of; the images stay where they are.

    Args:
        splits: of one dataset, with masks.
        output: an empty folder: ``<split>.json``, ``<split>/`` and ``instances_<split>.json``.
        boxes: has to be False.
        background: the class of all pixels without an object.

    Returns:
        Nothing that was left out.

    Raises:
        FormatError: there are no masks, or the background is a class already.
    """
    if boxes:
        raise FormatError("--boxes leaves out the masks, which panoptic data are made of")
    for split in splits:
        if background in split.class_names:
            raise FormatError(
                f"{background!r} is a class of {split.name} already: --background NAME gives the rest another name"
            )
    write_coco(splits, output, boxes=False)
    for split in splits:
        objects = (output / f"{split.name}.json").rename(output / f"instances_{split.name}.json")
        panoptic_from_instances(objects, output / split.name, background=background, progress=False)
    return []
