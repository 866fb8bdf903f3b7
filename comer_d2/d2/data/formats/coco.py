"""COCO's json, as it is."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from ..coco_json import CocoFile, check_annotations, read_coco
from .split import FormatError, Split, raise_findings


def read_coco_file(source: Path, images: Path) -> list[Split]:
    """Read a json, which has to be sound: what is wrong would be copied, or left out, in silence.

    Args:
        source: the json.
        images: the folder of its images.

    Returns:
        One split, named after the first of train, val and test that the file's name has, or else as the file.

    Raises:
        FormatError: with all that `read_coco` finds.
    """
    found = read_coco(str(source), str(images), need_masks=False)
    if found.findings:
        lines = "\n  ".join(found.findings.lines())
        raise FormatError(
            f"{source}:\n  {lines}\n(comer-d2 data check --repaired FOLDER writes a json without what can be repaired)"
        )
    word = re.search(r"(?<![a-z])(train|val|test)(ing|id|idation)?(?![a-z])", source.stem.lower())
    name = word[1] if word else source.stem
    return [Split(name, images, {"info": {}, **found.content}, found.notes)]


def check_objects(source: Path, split: Split) -> None:
    """Look at objects that no json was read from as `read_coco_file` does.

    Raises:
        FormatError: with every box or polygon that is not sound, and its place.
    """
    if not split.content["annotations"]:
        return
    content = {
        **split.content,
        "annotations": [{**a, "id": split.places[a["id"]]} for a in split.content["annotations"]],
    }
    found = CocoFile(content)
    check_annotations(found, need_masks=False, repair=False)
    raise_findings(source, found.findings)


def write_coco(splits: Sequence[Split], output: Path, *, boxes: bool) -> list[str]:
    """Write a json a split; the images stay where they are.

    Args:
        splits: of one dataset.
        output: an empty folder.
        boxes: leave out the masks.

    Returns:
        Nothing that was left out.
    """
    for split in splits:
        content = dict(split.content)
        if boxes:
            content["annotations"] = [
                {key: value for key, value in annotation.items() if key != "segmentation"}
                for annotation in content["annotations"]
            ]
        (output / f"{split.name}.json").write_text(json.dumps(content), encoding="utf-8")
    return []
