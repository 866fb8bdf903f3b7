"""COCO's json, as it is."""

import json
from collections.abc import Sequence
from pathlib import Path

from ..coco_json import read_coco
from .split import FormatError, Split


def read_coco_file(source: Path, images: Path) -> list[Split]:
    """Read a json, which has to be sound: what is wrong would be copied, or left out, in silence.

    Args:
        source: the json.
        images: the folder of its images.

    Returns:
        One split, named as the file.

    Raises:
        FormatError: with all that `read_coco` finds.
    """
    found = read_coco(str(source), str(images), need_masks=False)
    if found.findings:
        lines = "\n  ".join(found.findings.lines())
        raise FormatError(
            f"{source}:\n  {lines}\n(comer-d2 data check --repaired FOLDER writes a json without what can be repaired)"
        )
    return [Split(source.stem, images, {"info": {}, **found.content}, found.notes)]


def write_coco(splits: Sequence[Split], output: Path, *, boxes: bool) -> list[str]:
    """Write a json a split; the images stay where they are.

    Args:
        splits: of one dataset.
        output: an empty folder.
        boxes: leave out the masks.

    Returns:
        The keys that a config takes them by.
    """
    lines = []
    for split in splits:
        content = dict(split.content)
        if boxes:
            content["annotations"] = [
                {key: value for key, value in annotation.items() if key != "segmentation"}
                for annotation in content["annotations"]
            ]
        path = output / f"{split.name}.json"
        path.write_text(json.dumps(content), encoding="utf-8")
        lines.append(f"dataset.{split.name}_json={path} dataset.{split.name}_images={split.images}")
    return lines
