"""VGG Image Annotator (VIA 2): one .json of regions."""

import json
from pathlib import Path
from typing import Any

from ..findings import Findings
from .split import (
    FormatError,
    Reader,
    Shape,
    Split,
    add_image,
    at_size,
    build_split,
    ellipse,
    left_out,
    raise_findings,
)


def read_via(source: Path, images: Path, attribute: str | None, only_class: str | None) -> list[Split]:  # fmt: skip
    """Read VIA's annotations, exported or as a project.

    Polygons, rectangles, circles and ellipses are taken.

    Args:
        source: the .json.
        images: the folder of the images.
        attribute: the region attribute that holds the class; None: the only one there is.
        only_class: the name of all regions, where they have no attribute.

    Returns:
        One split, "all".

    Raises:
        FormatError: with every region that is wrong, or whose class is not known.
    """
    try:
        content = json.loads(source.read_text(encoding="utf-8-sig"))
        content = content.get("_via_img_metadata", content)
        entries = [
            (str(entry["filename"]), _listed(entry["regions"])) for entry in content.values()
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FormatError(f"{source}: not VIA's annotations ({error})") from error
    findings = Findings()
    shapes: dict[Path, Reader] = {}
    labels: set[str] = set()
    for place, (name, regions) in enumerate(entries, 1):
        found = []
        for number, region in enumerate(regions, 1):
            where = f"{name}, region {number}"
            try:
                label = _label(region.get("region_attributes") or {}, attribute, only_class)
                polygon = _polygon(region["shape_attributes"])
            except FormatError as error:
                findings.add(str(error), where)
                continue
            except (KeyError, TypeError, ValueError, AttributeError):
                findings.add("regions without sound coordinates", where)
                continue
            labels.add(label)
            found.append(Shape(label, [polygon], where=where))
        read = at_size(found, None, name, findings)
        add_image(shapes, images / name, read, f"{source}, number {place}", findings)
    split = build_split("all", images, shapes, sorted(labels), findings)
    raise_findings(source, findings)
    split.notes += left_out([split], "an entry")
    return [split]


def _listed(regions: Any) -> list[Any]:
    """VIA 1 numbers the regions in an object, VIA 2 lists them."""
    return list(regions.values() if isinstance(regions, dict) else regions)


def _label(attributes: dict[str, Any], attribute: str | None, only_class: str | None) -> str:
    if attribute is None and len(attributes) == 1:
        (attribute,) = attributes
    value = attributes.get(attribute)
    if isinstance(value, dict):  # a checkbox: {"cat": true}
        chosen = [name for name, on in value.items() if on]
        value = chosen[0] if len(chosen) == 1 else None
    if isinstance(value, str) and value.strip():
        return value.strip()
    if only_class and not attributes:
        return only_class
    known = ", ".join(attributes) or "none"
    raise FormatError(
        f"regions whose class is not known (their attributes: {known}; --attribute names the one to take, "
        "--class the class of regions without any)"
    )


def _polygon(shape: dict[str, Any]) -> list[float]:
    kind = shape["name"]
    if kind in ("polygon", "polyline"):
        xs, ys = shape["all_points_x"], shape["all_points_y"]
        if len(xs) != len(ys) or len(xs) < 3:
            raise ValueError
        return [float(value) for point in zip(xs, ys) for value in point]
    if kind == "rect":
        x, y, w, h = (float(shape[key]) for key in ("x", "y", "width", "height"))
        return [x, y, x + w, y, x + w, y + h, x, y + h]
    if kind == "circle":
        return ellipse(shape["cx"], shape["cy"], shape["r"], shape["r"])
    if kind == "ellipse" and not shape.get("theta"):
        return ellipse(shape["cx"], shape["cy"], shape["rx"], shape["ry"])
    raise FormatError(f"regions of a kind that is no area, or turned: {kind}")
