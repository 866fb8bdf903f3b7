"""COCO's json, as it is."""

import json
from collections.abc import Sequence
from pathlib import Path

from .split import FormatError, Split


def read_coco_file(source: Path, images: Path) -> list[Split]:
    """Read a json; `comer-d2 data check` is what says whether it is sound.

    Args:
        source: the json.
        images: the folder of its images.

    Returns:
        One split, named as the file.

    Raises:
        FormatError: it is no COCO json.
    """
    try:
        content = json.loads(source.read_text(encoding="utf-8-sig"))
        found = {key: content[key] for key in ("images", "annotations", "categories")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{source}: not COCO's annotations ({error})") from error
    return [Split(source.stem, images, {"info": {}, **content, **found})]


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
