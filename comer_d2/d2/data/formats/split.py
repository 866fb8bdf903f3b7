"""One part of a dataset on its way from one format to another, in COCO's terms."""

import math
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import UserError
from ..findings import Findings, summarise
from ..images import IMAGE_ENDINGS, BadImage, check_images

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


def at_size(
    shapes: Sequence[Shape], size: tuple[int, int] | None, where: str, findings: Findings
) -> Reader:
    """For formats whose coordinates are pixels.

    Args:
        shapes: the objects.
        size: (width, height) that the annotations give to the image; None: they give none.
        where: the file of the annotations, for errors.
        findings: an image of another size is added here.

    Returns:
        What gives the objects.
    """

    def read(width: int, height: int) -> Sequence[Shape]:
        if size not in (None, (width, height)):
            findings.add(
                "images of another size than their annotations say (were they resized? Use the original files; "
                "if the coordinates are right, correct the size)",
                f"{where}: {size[0]} x {size[1]}, the image: {width} x {height}",
            )
        return shapes

    return read


@dataclass
class Split:
    """Images with their annotations.

    Args:
        name: "train", "val", ..., or "all" where the data are in one part.
        images: the folder that `file_name`s start from.
        content: COCO's json.
        notes: what was left out or assumed.
        places: id of an annotation -> the file it is from, and its place there.
    """

    name: str
    images: Path
    content: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    places: dict[int, str] = field(default_factory=dict)

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
    counts = Counter(class_names)
    findings.extend("class names that come twice", (repr(n) for n in counts if counts[n] > 1))
    findings.extend("class names without a letter", (repr(n) for n in counts if not n.strip()))
    ids = {label: number for number, label in enumerate(class_names, 1)}
    content: dict[str, Any] = {
        "info": {},
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": label} for label, number in ids.items()],
    }
    places: dict[int, str] = {}
    for (path, read), size in zip(shapes.items(), check_images(list(shapes), title=name)):
        if isinstance(size, BadImage):
            findings.add("images that cannot be read", str(size))
            continue
        if not path.is_relative_to(images):
            findings.add(
                f"images outside of {images} (--images names the folder of all)", str(path)
            )
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
            places[annotation["id"]] = shape.where
    return Split(name, images, content, list(notes), places)


def add_image(
    shapes: dict[Path, Reader], image: Path, read: Reader, where: str, findings: Findings
) -> None:
    """Add an image's objects to `shapes`; an image that has some already is a finding."""
    if image in shapes:
        findings.add("annotations of an image that has others already", f"{where}: {image.name}")
    shapes[image] = read


def images_by_stem(folder: Path, wanted: Collection[str], findings: Findings) -> dict[str, Path]:
    """Find images by their names without an ending.

    Args:
        folder: it is searched whole.
        wanted: names relative to the folder.
        findings: names that two images have are added here.

    Returns:
        Wanted name -> image; names without an image are left out.
    """
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        stem = path.relative_to(folder).with_suffix("").as_posix()
        if path.suffix.lower() not in IMAGE_ENDINGS or stem not in wanted:
            continue
        if stem in found:
            findings.add("images whose names differ in the ending alone", f"{found[stem]} and {path.name}")  # fmt: skip
        found[stem] = path
    return found


def left_out(splits: Sequence[Split], what: str) -> list[str]:
    """A note on the images that lie in a folder and in none of its splits.

    Args:
        splits: of one folder of images.
        what: they lack.
    """
    folder = splits[0].images
    names = (image["file_name"] for split in splits for image in split.content["images"])
    taken = {os.path.normpath(folder / name) for name in names}
    files = (p for p in sorted(folder.rglob("*")) if p.suffix.lower() in IMAGE_ENDINGS)
    others = [p.relative_to(folder).as_posix() for p in files if os.path.normpath(p) not in taken]
    return [summarise(f"images without {what} are left out", others)] if others else []


def read_lines(path: Path, findings: Findings) -> list[str]:
    """Lines of a text; a file that is none is a finding."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        findings.add("files that cannot be read as text", f"{path} ({error})")
        return []


def copy_image(split: Split, image: dict[str, Any], folder: Path) -> Path:
    """Copy an image of a split to its place in another folder.

    Raises:
        FormatError: its name leads out of the folder.
    """
    name = Path(image["file_name"])
    if name.is_absolute() or ".." in name.parts:
        raise FormatError(
            f"'{name}': an image has to lie below {split.images}, for its copy lies so in the new folder: move it "
            "there, or name a higher folder"
        )
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(split.images / name, target)
    return target


def polygon_area(points: Sequence[float]) -> float:
    """Area of x0, y0, x1, y1, ... by the shoelace formula."""
    xs, ys = points[::2], points[1::2]
    pairs = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]])
    return abs(sum(x0 * y1 - x1 * y0 for x0, y0, x1, y1 in pairs)) / 2


def ellipse(x: float, y: float, rx: float, ry: float) -> list[float]:
    """A polygon in the place of an ellipse around (x, y)."""
    angles = [2 * math.pi * i / CIRCLE_POINTS for i in range(CIRCLE_POINTS)]
    return [v for a in angles for v in (x + rx * math.cos(a), y + ry * math.sin(a))]


def raise_findings(where: object, findings: Findings) -> None:
    """Raises FormatError with all of them, if there are any."""
    if findings:
        raise FormatError(f"{where}:\n  " + "\n  ".join(findings.lines()))


def natural(text: str) -> list[Any]:
    """A key that sorts 2 before 10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
