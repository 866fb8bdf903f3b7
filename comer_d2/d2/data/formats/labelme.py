"""LabelMe: a .json of shapes beside every image."""

import json
import os
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from ..findings import Findings
from .split import (
    Reader,
    Shape,
    Split,
    add_image,
    at_size,
    build_split,
    copy_image,
    ellipse,
    left_out,
    natural,
    raise_findings,
)


def read_labelme(source: Path, images: Path | None = None) -> list[Split]:
    """Read a folder of LabelMe's files.

    Polygons, rectangles and circles are taken; shapes of one label and `group_id` are one object.

    Args:
        source: the folder.
        images: the folder of the images; None: the same. An image is where `imagePath` says, from its .json, or
            else of that name beside it.

    Returns:
        One split, "all".

    Raises:
        FormatError: with every shape of another kind, and every file that is wrong.
    """
    files = sorted(source.rglob("*.json"), key=lambda p: natural(str(p)))
    findings = Findings()
    shapes: dict[Path, Reader] = {}
    labels: set[str] = set()
    for file in files:
        try:
            content = json.loads(file.read_text(encoding="utf-8-sig"))
            given, name = list(content["shapes"]), PureWindowsPath(content["imagePath"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            findings.add("files that are not LabelMe's", f"{file} ({error})")
            continue
        found = _read_shapes(given, file, findings)
        labels |= {shape.label for shape in found}
        width, height = content.get("imageWidth"), content.get("imageHeight")
        read = at_size(found, (width, height) if width and height else None, str(file), findings)
        image = Path(os.path.normpath(file.parent / name.as_posix()))
        if name.root or not image.is_file():  # of another machine
            image = file.with_name(name.name)
        add_image(shapes, image, read, str(file), findings)
    if not files:
        findings.add("no .json files: it should be a folder of LabelMe's")
    folder = Path(os.path.normpath(images or source))
    split = build_split("all", folder, shapes, sorted(labels), findings)
    raise_findings(source, findings)
    split.notes += left_out([split], "a .json")
    return [split]


def _read_shapes(given: Sequence[dict[str, Any]], file: Path, findings: Findings) -> list[Shape]:
    objects: dict[Any, Shape] = {}
    for number, item in enumerate(given, 1):
        where = f"{file}, shape {number}"
        try:
            kind, label = item.get("shape_type") or "polygon", str(item["label"]).strip()
            points = [(float(x), float(y)) for x, y in item["points"]]
        except (KeyError, TypeError, ValueError, AttributeError):
            findings.add("shapes without label or points", where)
            continue
        if kind == "polygon" and len(points) >= 3:
            polygon = [value for point in points for value in point]
        elif kind == "rectangle" and len(points) == 2:
            (x0, y0), (x1, y1) = points
            polygon = [x0, y0, x1, y0, x1, y1, x0, y1]
        elif kind == "circle" and len(points) == 2:
            (x, y), (x1, y1) = points
            radius = ((x - x1) ** 2 + (y - y1) ** 2) ** 0.5
            polygon = ellipse(x, y, radius, radius)
        else:
            findings.add("shapes that are no polygon, rectangle or circle", f"{where}: {kind}")
            continue
        group = item.get("group_id")
        key = number if group is None else ("group", str(group), label)
        objects.setdefault(key, Shape(label, where=where)).polygons.append(polygon)
    return list(objects.values())


def write_labelme(splits: Sequence[Split], output: Path, *, boxes: bool) -> list[str]:
    """Write a folder a split, with a .json beside every image.

    Args:
        splits: of one dataset.
        output: an empty folder.
        boxes: write rectangles only, also where there are polygons.

    Returns:
        What was left out.

    Raises:
        FormatError: RLEs, which LabelMe has not.
    """
    findings = Findings()
    crowds = 0
    for split in splits:
        names = {c["id"]: c["name"] for c in split.content["categories"]}
        for image, objects in split.objects():
            shapes = []
            for annotation in objects:
                segmentation = annotation.get("segmentation")
                if annotation.get("iscrowd"):
                    crowds += 1
                elif isinstance(segmentation, dict) and not boxes:
                    findings.add("objects with an RLE, which LabelMe has not (--boxes writes boxes alone)", f"annotation {annotation['id']}")  # fmt: skip
                else:
                    x, y, w, h = annotation["bbox"]
                    kind = "rectangle" if boxes or not segmentation else "polygon"
                    polygons = [[x, y, x + w, y + h]] if kind == "rectangle" else segmentation
                    group = annotation["id"] if len(polygons) > 1 else None
                    shapes += [
                        {
                            "label": names[annotation["category_id"]],
                            "points": list(map(list, zip(polygon[::2], polygon[1::2]))),
                            "group_id": group,
                            "shape_type": kind,
                            "flags": {},
                        }
                        for polygon in polygons
                    ]
            path = copy_image(split, image, output / split.name)
            content = {
                "version": "5.0.0",
                "flags": {},
                "shapes": shapes,
                "imagePath": path.name,
                "imageData": None,
                "imageHeight": image["height"],
                "imageWidth": image["width"],
            }
            if path.with_suffix(".json").exists():
                findings.add("images whose names differ in the ending alone", image["file_name"])
            path.with_suffix(".json").write_text(json.dumps(content), encoding="utf-8")
    raise_findings("what LabelMe cannot hold", findings)
    return [f"{crowds} crowds left out: LabelMe has none"] if crowds else []
