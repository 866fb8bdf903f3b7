"""What is in a registered dataset, in numbers, and what follows from them for training."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from tabulate import tabulate

from .custom import kind_of
from .images import check_images, read_all
from .semantic_labels import SemanticLabels

# COCO's limits of small and medium objects, pixels of area.
SMALL, MEDIUM = 32**2, 96**2
FEW = 20  # objects or images of a class below which it is named
SMALLEST_SIDE = 32  # pixels: most objects should be larger, eight cells of a stride-4 map
MULTIPLE = 32  # what sides are rounded up to


def describe(names: Sequence[str]) -> list[str]:
    """Images, classes, sizes and copies.

    Args:
        names: registered datasets, the first to train on.

    Returns:
        Lines of text.
    """
    records = {name: DatasetCatalog.get(name) for name in names}
    lines = []
    for name, found in records.items():
        sizes = check_images([record["file_name"] for record in found], title=name)
        sides = np.array([size for size in sizes if isinstance(size, tuple)])
        widths, heights = np.sort(sides, axis=0).T
        middle = len(widths) // 2
        lines += [
            "",
            f"{name}: {len(found)} images, widths {widths[0]} to {widths[-1]} (median {widths[middle]}), "
            f"heights {heights[0]} to {heights[-1]} (median {heights[middle]})",
        ]
        if any("annotations" in record for record in found):
            lines += _objects(name, found)
            if name == names[0]:
                lines += _side_to_train_at(found, sides.max(axis=1))
        elif any("sem_seg_file_name" in record for record in found):
            lines += _pixels(name, found)
    return [*lines, *_copies(records)]


def _objects(name: str, records: Sequence[dict[str, Any]]) -> list[str]:
    """Objects by class and size, and classes with few."""
    classes = kind_of(name).classes
    objects = [
        (annotation["category_id"], annotation["bbox"][2] * annotation["bbox"][3])
        for record in records
        for annotation in record["annotations"]
        if not annotation.get("iscrowd")
    ]
    number, area = np.array(objects).reshape(-1, 2).T
    limits = ((0, SMALL), (SMALL, MEDIUM), (MEDIUM, np.inf))
    rows = [
        [
            label,
            int((number == i).sum()),
            *(int(((number == i) & (low <= area) & (area < high)).sum()) for low, high in limits),
        ]
        for i, label in enumerate(classes)
    ]
    table = tabulate(rows, ["class", "objects", "small", "medium", "large"])
    empty = sum(not record["annotations"] for record in records)
    lines = [*table.splitlines(), f"{empty} images without objects"]
    few = [f"{row[0]} ({row[1]})" for row in rows if row[1] < FEW]
    if few:
        lines.append(f"classes of fewer than {FEW} objects, to label more of: {', '.join(few)}")
    return lines


def _side_to_train_at(records: Sequence[dict[str, Any]], longest: np.ndarray) -> list[str]:
    """The side at which nine objects of ten are large enough, if the images have it."""
    shares = [
        (annotation["bbox"][2] * annotation["bbox"][3]) ** 0.5 / side
        for record, side in zip(records, longest)
        for annotation in record["annotations"]
    ]
    if not shares:
        return []
    tenth = float(np.quantile(shares, 0.1))
    wanted, most = SMALLEST_SIDE / tenth, float(np.median(longest))
    side = int(-(-min(wanted, most) // MULTIPLE) * MULTIPLE)
    return [
        f"at a longer side of {side} pixels, nine objects of ten are {tenth * side:.0f} pixels or more "
        "across: "
        + (
            "train at that or more"
            if wanted <= most
            else "that is all the images have; small objects want tiles (predict --tile)"
        )
    ]


def _pixels(name: str, records: Sequence[dict[str, Any]]) -> list[str]:
    """Pixels and images by class, and classes that few images show."""
    classes = kind_of(name).classes
    labels = SemanticLabels(name)
    counted = read_all(
        lambda record: np.bincount(labels(record).flatten(), minlength=256), records, name
    )
    pixels = np.sum(counted, axis=0)
    images = np.sum([count > 0 for count in counted], axis=0)
    rows = [
        [label, f"{pixels[i] / pixels.sum():.2%}", int(images[i])]
        for i, label in enumerate(classes)
    ]
    lines = [
        *tabulate(rows, ["class", "pixels", "images"]).splitlines(),
        f"{pixels[len(classes) :].sum() / pixels.sum():.2%} of the pixels are ignored",
    ]
    few = [f"{row[0]} ({row[2]})" for row in rows if row[2] < FEW]
    if few:
        lines.append(f"classes in fewer than {FEW} images, to label more of: {', '.join(few)}")
    return lines


def _copies(records: dict[str, Sequence[dict[str, Any]]]) -> list[str]:
    """Files of the same bytes, within a split and across them."""
    places: dict[str, list[tuple[str, str]]] = {}
    for name, found in records.items():
        files = [record["file_name"] for record in found]
        digests = read_all(lambda file: hashlib.sha256(Path(file).read_bytes()).hexdigest(), files, None)  # fmt: skip
        for digest, file in zip(digests, files):
            places.setdefault(digest, []).append((name, file))
    across = [same for same in places.values() if len({name for name, _ in same}) > 1]
    within = Counter(
        same[0][0] for same in places.values() if len(same) > len({n for n, _ in same})
    )
    lines = [f"{name}: {count} images are there more than once" for name, count in within.items()]
    if across:
        shown = "; ".join(" = ".join(file for _, file in same) for same in across[:3])
        lines.append(
            f"{len(across)} images are in {' and in '.join(records)}: what is measured on them was learnt by "
            f"heart: {shown}{'; ...' if len(across) > 3 else ''}"
        )
    return ["", *lines] if lines else []
