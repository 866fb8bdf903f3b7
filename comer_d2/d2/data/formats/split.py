"""One part of a dataset on its way from one format to another, in COCO's terms."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..findings import Findings
from ..images import BadImage, check_images

CIRCLE_POINTS = 64  # of a polygon in the place of a circle


class FormatError(UserError):
    """Annotations that cannot be read or written; the message lists every problem with its place."""


@dataclass
class Shape:
    """One object: a box, or polygons.

    Args:
        label: its class.
        polygons: lists of x0, y0, x1, y1, ... in pixels; none: the box is all that is known.
        box: (x, y, width, height) in pixels; None: of the polygons.
        where: the file, and the line or number in it, for errors.
        extra: further keys of its COCO annotation.
    """

    label: str
    polygons: list[list[float]] = field(default_factory=list)
    box: list[float] | None = None
    where: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


# What gives an image's objects for its width and height.
Reader = Callable[[int, int], Sequence[Shape]]


def at_any_size(shapes: Sequence[Shape]) -> Reader:
    """For formats whose coordinates are pixels."""
    return lambda width, height: shapes


@dataclass
class Split:
    """Images with their annotations.

    Args:
        name: "train", "val", ..., or "all" where the data are in one part.
        images: the folder that `file_name`s start from.
        content: COCO's json.
        notes: what was left out or assumed.
    """

    name: str
    images: Path
    content: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def class_names(self) -> list[str]:
        """In the order of their ids."""
        return [c["name"] for c in sorted(self.content["categories"], key=lambda c: c["id"])]

    def objects(self) -> Iterable[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Every image with its annotations."""
        found: dict[Any, list] = {image["id"]: [] for image in self.content["images"]}
        for annotation in self.content["annotations"]:
            found[annotation["image_id"]].append(annotation)
        for image in self.content["images"]:
            yield image, found[image["id"]]


def build_split(
    name: str,
    images: Path,
    shapes: dict[Path, Reader],
    class_names: Sequence[str],
    findings: Findings,
    notes: Sequence[str] = (),
) -> Split:
    """Put together COCO's json.

    Args:
        name: of the split.
        images: the folder of the images.
        shapes: for each image file, what gives its objects.
        class_names: in the order of their ids, from 1.
        findings: problems are added here.
        notes: see `Split`.

    Returns:
        The split; sizes are those of the upright images.
    """
    ids = {label: number for number, label in enumerate(class_names, 1)}
    content: dict[str, Any] = {
        "info": {},
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": label} for label, number in ids.items()],
    }
    for (path, read), size in zip(shapes.items(), check_images(list(shapes), title=name)):
        if isinstance(size, BadImage):
            findings.add("images that cannot be read", str(size))
            continue
        width, height = size
        image_id = len(content["images"]) + 1
        file_name = path.relative_to(images).as_posix()
        content["images"].append(
            {"id": image_id, "file_name": file_name, "width": width, "height": height}
        )
        for shape in read(width, height):
            xs = [x for polygon in shape.polygons for x in polygon[::2]]
            ys = [y for polygon in shape.polygons for y in polygon[1::2]]
            box = shape.box or [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]
            if not all(map(math.isfinite, [*box, *xs, *ys])):
                findings.add("objects with coordinates that are no numbers", shape.where)
                continue
            annotation = {
                "id": len(content["annotations"]) + 1,
                "image_id": image_id,
                "category_id": ids[shape.label],
                "bbox": box,
                "area": sum(map(polygon_area, shape.polygons)) or box[2] * box[3],
                "iscrowd": 0,
                **shape.extra,
            }
            if shape.polygons:
                annotation["segmentation"] = shape.polygons
            content["annotations"].append(annotation)
    return Split(name, images, content, list(notes))


def polygon_area(points: Sequence[float]) -> float:
    """Area of x0, y0, x1, y1, ... by the shoelace formula."""
    xs, ys = points[::2], points[1::2]
    pairs = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]])
    return abs(sum(x0 * y1 - x1 * y0 for x0, y0, x1, y1 in pairs)) / 2


def ellipse(x: float, y: float, rx: float, ry: float) -> list[float]:
    """A polygon in the place of an ellipse around (x, y)."""
    angles = [2 * math.pi * i / CIRCLE_POINTS for i in range(CIRCLE_POINTS)]
    return [v for a in angles for v in (x + rx * math.cos(a), y + ry * math.sin(a))]


def raise_findings(source: Path, findings: Findings) -> None:
    """Raises FormatError with all of them, if there are any."""
    if findings:
        raise FormatError(f"{source}:\n  " + "\n  ".join(findings.lines()))


def natural(text: str) -> list[Any]:
    """A key that sorts 2 before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
