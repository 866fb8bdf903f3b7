"""A COCO instances file: read, completed, checked, and on request repaired.

The rules are told to users in docs/DATASETS.md. What is *computed* adds something that the file lacks and is a function of
the rest; it happens always. What is *repaired* changes an annotation, and has to be asked for.
"""

import importlib.metadata
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pycocotools.mask as mask_util

from .findings import NOT_SET, Findings, summarise
from .images import BadImage, check_images, turned_by_exif
from .segmentation_geometry import box_of, overlap, polygon_problem, rle_problem

BOX_TOLERANCE = 1.0  # pixels a box may reach over its image's edge: tools round differently
SLIGHTLY = 0.05  # of the image's side: a box further outside is a mistake, not a rounding
APART = 0.25  # IoU of a box with that of its own segmentation: below, they are of different places
SHARES = 1.01  # largest number of a box in shares of its image, with what a converter rounds
MAX_OBJECTS = 10_000  # in an image: the RPN compares each with some 260,000 anchors, 10 GB in all
MAX_MASK_BYTES = 2**32  # of an image's masks, a byte a pixel

TO_REPAIR = "; dataset.repair=True {}"


@dataclass
class CocoFile:
    """What `read_coco` made of a file.

    Args:
        content: images, annotations, categories; as Detectron2 and pycocotools need them.
        findings: what has to be repaired in the file.
        notes: what was computed, repaired or left out, and what looks odd.
        changed: whether `content` is something else than what the file holds.
    """

    content: dict[str, Any] = field(default_factory=dict)
    findings: Findings = field(default_factory=Findings)
    notes: list[str] = field(default_factory=list)
    changed: bool = False

    @property
    def categories(self) -> dict[int, str]:
        """Id -> name."""
        return {c["id"]: c["name"] for c in self.content.get("categories", ())}

    def paths(self, folder: str) -> list[Path]:
        """Of its images, whose names are relative to a folder."""
        return [Path(folder, image["file_name"]) for image in self.content["images"]]

    def note(self, what: str, cases: Iterable[str], *, changed: bool = False) -> None:
        """Say something about cases, if there are any."""
        cases = list(cases)
        if cases:
            self.notes.append(summarise(what, cases))
            self.changed |= changed


def read_coco(
    json_file: str | None,
    images: str | None,
    *,
    need_masks: bool,
    repair: bool = False,
    max_bad_images: float = 0.0,
    decode: bool = False,
    title: str | None = None,
) -> CocoFile:
    """Read a COCO instances file and look for what would stop or silently spoil a training or an evaluation.

    Args:
        json_file: path of the json.
        images: folder its file names are relative to.
        need_masks: annotations without a segmentation are a problem.
        repair: clip boxes that are slightly outside; drop boxes of no size and polygons of less than three points.
        max_bad_images: leave out images that are missing or cannot be read, up to this share of all.
        decode: read every image whole, not only its header and end.
        title: of a progress bar over the images; None: no bar.

    Returns:
        The content and what there is to say about it. With findings, the content may be incomplete.
    """
    found = CocoFile()
    if not parse(found, json_file, images):
        return found
    content = found.content
    check_fields(
        content,
        {
            "images": {"id": (int, str), "file_name": (str,)},
            "categories": {"id": (int,), "name": (str,)},
            "annotations": {"image_id": (int, str), "category_id": (int,), "bbox": (list,)},
        },
        found.findings,
    )
    if found.findings:  # what follows reads those fields
        return found
    for number, annotation in enumerate(content["annotations"]):
        if annotation.get("id") is None:
            annotation["id"] = f"number {number}"
    check_files(found, Path(images), max_bad_images, decode=decode, title=title)
    objects = [a for a in content["annotations"] if not a.get("iscrowd")]
    check_categories(found, {annotation["category_id"] for annotation in objects})
    check_annotations(found, need_masks, repair)
    _complete(found)
    return found


def parse(found: CocoFile, json_file: str | None, images: str | None) -> bool:
    """Read a json with images, annotations and categories into `found`.

    Returns:
        Whether there is such a thing; if not, the findings say why.
    """
    findings = found.findings
    if not json_file:
        findings.add(NOT_SET)
        return False
    if not Path(json_file).is_file():
        findings.add("a folder, no file" if Path(json_file).is_dir() else "there is no such file")
        return False
    if not images or not Path(images).is_dir():
        findings.add(f"its folder of images, {str(images or '')!r}, does not exist")
        return False
    try:
        text = Path(json_file).read_bytes()
        content = json.loads(text, parse_int=_whole_number)  # with or without a byte order mark
    except (ValueError, RecursionError) as error:
        findings.add(f"not valid json ({error})")
        return False
    if not isinstance(content, dict):
        findings.add(
            "not in COCO format: the top level has to be an object with images, annotations and categories"
        )
        return False
    parts = ("images", "annotations", "categories")
    missing = [part for part in parts if not content.get(part)]
    if missing:
        findings.add(f"{' and '.join(missing)} missing or empty")
        return False
    wrong = [
        part
        for part in parts
        if not isinstance(content[part], list)
        or not all(isinstance(entry, dict) for entry in content[part])
    ]
    if wrong:
        findings.add(f"not in COCO format: {' and '.join(wrong)} has to be a list of objects")
        return False
    found.content = content
    found.changed |= json.detect_encoding(text) != "utf-8"  # Detectron2 reads no other
    return True


def check_fields(
    content: dict[str, Any],
    fields: Mapping[str, Mapping[str, tuple[type, ...]]],
    findings: Findings,
) -> None:
    """Missing keys, values of another type, and ids that come twice.

    Args:
        content: of the file.
        fields: part of the file -> key of its entries -> types.
        findings: to add to.
    """
    for part, keys in fields.items():
        entries = content[part]
        for key, types in keys.items():
            without = [i for i, entry in enumerate(entries) if entry.get(key) is None]
            findings.extend(f"{part} without {key!r}", (f"number {i}" for i in without))
            what = " or ".join({int: "whole number", str: "text", list: "list"}[t] for t in types)
            findings.extend(
                f"{part} whose {key!r} is no {what}",
                (
                    f"number {i}: {entry[key]!r}"
                    for i, entry in enumerate(entries)
                    if entry.get(key) is not None and not isinstance(entry[key], types)
                ),
            )
        counts = Counter(str(entry["id"]) for entry in entries if entry.get("id") is not None)
        findings.extend(
            f"{part} whose id another one has", (i for i, count in counts.items() if count > 1)
        )


def check_files(
    found: CocoFile, folder: Path, max_bad_images: float, *, decode: bool, title: str | None
) -> None:
    """Look at image files and sizes; bad images are left out where that was asked for."""
    paths = [folder / name for name in _find_files(found, folder)]
    sizes = check_images(paths, decode=decode, title=title)
    images = found.content["images"]
    counts = Counter(os.path.normpath(image["file_name"]) for image in images)
    found.findings.extend(
        "images that are listed more than once, under different ids",
        (name for name, count in counts.items() if count > 1),
    )
    bad: dict[Any, BadImage] = {}
    unsized, turned, other = [], [], []
    for image, size in zip(images, sizes, strict=True):
        listed = (image.get("width"), image.get("height"))
        is_listed = all(isinstance(side, (int, float)) and side > 0 for side in listed)
        if isinstance(size, BadImage):
            bad[image["id"]] = size
            if not is_listed:
                image["size_is_wrong"] = True
            continue
        if not is_listed:
            unsized.append(image["file_name"])
        elif listed != size:
            text = f"{image['file_name']}: {size[0]} x {size[1]}, json: {listed[0]} x {listed[1]}"
            is_turned = listed == size[::-1] and turned_by_exif(folder / image["file_name"])
            (turned if is_turned else other).append(text)
            image["size_is_wrong"] = True
            continue
        image["width"], image["height"] = size
    found.note("images without width and height: read from the files", unsized, changed=True)
    found.findings.extend(
        "images whose width and height are those before the turn that EXIF data ask for (training turns them: give "
        "the upright size, and boxes in upright pixels, or remove the EXIF orientation from the files)",
        turned,
    )
    found.findings.extend(
        "images of another size than the json says (were the files resized? Boxes belong to the json's size: use the "
        "original files, or scale width, height, boxes and masks)",
        other,
    )
    if len(bad) > max_bad_images * len(images):
        found.findings.extend(
            "images that are missing or cannot be read (dataset.on_bad_image=skip leaves out a few)",
            map(str, bad.values()),
        )
        return
    found.note("images left out (dataset.on_bad_image=skip)", map(str, bad.values()), changed=True)
    found.content["images"] = [image for image in images if image["id"] not in bad]
    found.content["annotations"] = [
        annotation
        for annotation in found.content["annotations"]
        if annotation["image_id"] not in bad
    ]


def _find_files(found: CocoFile, folder: Path) -> list[str]:
    """File names; Windows separators and a prefix images/ are understood where exactly that makes a file exist."""
    renamed = []
    for image in found.content["images"]:
        name = image["file_name"]
        if os.path.isfile(folder / name):  # unlike Path.is_file, False for names no system takes
            continue
        slashes = name.replace("\\", "/")
        for candidate in (slashes, slashes.removeprefix("images/")):
            if candidate != name and os.path.isfile(folder / candidate):
                image["file_name"] = candidate
                renamed.append(f"{name} is {candidate}")
                break
    found.note("file names read as what is there", renamed, changed=True)
    return [image["file_name"] for image in found.content["images"]]


def check_categories(found: CocoFile, used: set[int]) -> None:
    """Names that are missing or come twice; categories that no object is of.

    Args:
        found: with the categories.
        used: ids of those that objects are of; a crowd is none.
    """
    names = Counter(found.categories.values())
    found.findings.extend(
        "categories without a name",
        (f"id {i}: {name!r}" for i, name in found.categories.items() if not name.strip()),
    )
    found.findings.extend(
        "category names that come twice (metrics and predictions are told by name: rename one, or make them one "
        "category)",
        (repr(name) for name, count in names.items() if count > 1),
    )
    found.note(
        "categories without an object (they count as classes all the same)",
        (f"{i}: {name!r}" for i, name in found.categories.items() if i not in used),
    )


def check_annotations(found: CocoFile, need_masks: bool, repair: bool) -> None:
    """Look at objects and their places; arguments as of `read_coco`."""
    content, findings = found.content, found.findings
    annotations = content["annotations"]
    without = [a for a in annotations if a.get("iscrowd") is None]
    found.note("annotations without iscrowd: taken as 0", map(_name, without), changed=True)
    for annotation in without:
        annotation["iscrowd"] = 0
    findings.extend(
        "annotations whose iscrowd is neither 0 nor 1",
        (f"{_name(a)}: {a['iscrowd']!r}" for a in annotations if a["iscrowd"] not in (0, 1)),
    )
    images = {image["id"]: image for image in content["images"]}
    categories = found.categories
    findings.extend(
        "annotations of an image that is not listed (image_id)",
        (f"{_name(a)}: {a['image_id']!r}" for a in annotations if a["image_id"] not in images),
    )
    findings.extend(
        "annotations of a category that is not listed (category_id)",
        (
            f"{_name(a)}: {a['category_id']}"
            for a in annotations
            if a["category_id"] not in categories
        ),
    )
    findings.extend(
        "annotations with 'ignore', which Detectron2 does not know (remove them, or set iscrowd)",
        (_name(a) for a in annotations if a.get("ignore")),
    )
    _check_crowds(found)
    counts = Counter(annotation["image_id"] for annotation in annotations)
    check_numbers(findings, counts, images, need_masks)
    # Where the size is wrong, what is outside is not known.
    wrong = {"size_is_wrong": True}
    sized = [a for a in annotations if not images.get(a["image_id"], wrong).get("size_is_wrong")]
    dropped = _check_boxes(found, sized, images, repair)
    _check_segmentations(found, sized, images, need_masks, repair)
    dropped |= {id(a) for a in sized if a.get("segmentation") == "dropped"}
    if dropped:
        content["annotations"] = [a for a in annotations if id(a) not in dropped]
    if not content["annotations"]:
        findings.add("no annotation is left")
    _check_agreement(found, images, need_masks)
    _check_repeated(found)


def _check_crowds(found: CocoFile) -> None:
    annotations = found.content["annotations"]
    crowds = [a for a in annotations if a["iscrowd"]]
    if crowds and len(crowds) == len(annotations):
        found.findings.add(
            "every annotation is a crowd (iscrowd=1), and crowds neither train nor count; some tools mark every RLE "
            "so: set iscrowd to 0"
        )
    elif len(crowds) > 0.1 * len(annotations):
        found.note(
            f"of {len(annotations)} annotations are crowds (iscrowd=1), which neither train nor count; some tools "
            "mark every RLE so",
            map(_name, crowds),
        )


def check_numbers(
    findings: Findings, counts: Mapping[Any, int], images: dict[Any, dict], need_masks: bool
) -> None:
    """Objects of an image that would not fit into memory; `counts`: image id -> objects."""
    many, large = [], []
    for image_id, count in counts.items():
        image = images.get(image_id, {})
        size = count * (image.get("width") or 0) * (image.get("height") or 0)
        if count > MAX_OBJECTS:
            many.append(f"{image.get('file_name', image_id)}: {count}")
        elif need_masks and size > MAX_MASK_BYTES:
            large.append(f"{image['file_name']}: {count} masks, {size / 2**30:.1f} GiB")
    findings.extend(
        f"images with more than {MAX_OBJECTS} annotations, more than memory holds (cut them into tiles)",
        many,
    )
    findings.extend(
        f"images whose masks need more than {MAX_MASK_BYTES / 2**30:.0f} GiB (cut them into tiles)",
        large,
    )


def _check_boxes(
    found: CocoFile, annotations: list[dict], images: dict[Any, dict], repair: bool
) -> set[int]:
    """Boxes that are none, empty or outside; returns the identities of annotations to drop."""
    findings = found.findings
    empty, slight, outside, corners = [], [], [], 0
    boxes, broken = [], []
    for annotation in annotations:
        (boxes if _is_box(annotation["bbox"]) else broken).append(annotation)
    findings.extend(
        "boxes that are not four finite numbers [x, y, width, height], width and height not below 0",
        map(_name_and_box, broken),
    )
    shares = [a for a in boxes if _is_share(a["bbox"])]
    if shares:
        what = "they are shares of the image, and COCO's are pixels; multiply x and width by the image's width, y and height by its height"
        if len(shares) == len(boxes):
            findings.add(f"all boxes lie between 0 and 1: {what}")
        else:
            findings.extend(f"boxes that lie between 0 and 1 ({what})", map(_name_and_box, shares))
        return set()
    for annotation in boxes:
        image = images[annotation["image_id"]]
        x, y, width, height = annotation["bbox"]
        sides = (image["width"], image["height"])
        over = [max(-x, x + width - sides[0]), max(-y, y + height - sides[1])]
        if width <= 0 or height <= 0:
            empty.append(annotation)
        elif all(o <= BOX_TOLERANCE for o in over):
            continue
        elif (
            all(o <= max(BOX_TOLERANCE, SLIGHTLY * side) for o, side in zip(over, sides))
            and min(_clipped(annotation["bbox"], image)[2:]) > 0
        ):
            slight.append(annotation)
        else:
            outside.append(annotation)
            corners += width > x and height > y and width <= sides[0] + 1 and height <= sides[1] + 1
    hint = ""
    if outside and corners == len(outside):
        hint = "; they would fit as [x0, y0, x1, y1]: give width and height instead of the second corner"
    findings.extend(
        f"boxes outside their image (bbox is [x, y, width, height]{hint})",
        map(_name_and_box, outside),
    )
    if not repair:
        findings.extend(
            "boxes of zero size" + TO_REPAIR.format("drops them"), map(_name_and_box, empty)
        )
        findings.extend(
            f"boxes that reach more than {BOX_TOLERANCE:g} pixel over the edge of their image, at most "
            f"{SLIGHTLY:.0%} of its side" + TO_REPAIR.format("clips them"),
            map(_name_and_box, slight),
        )
        return set()
    found.note("boxes of zero size dropped", map(_name_and_box, empty), changed=True)
    found.note("boxes clipped to their image", map(_name_and_box, slight), changed=True)
    for annotation in slight:
        annotation["bbox"] = _clipped(annotation["bbox"], images[annotation["image_id"]])
    return {id(annotation) for annotation in empty}


def _clipped(box: list[float], image: dict[str, Any]) -> list[float]:
    x, y, width, height = box
    x0, y0 = max(x, 0), max(y, 0)
    x1, y1 = min(x + width, image["width"]), min(y + height, image["height"])
    return [x0, y0, x1 - x0, y1 - y0]


def _check_segmentations(
    found: CocoFile,
    annotations: list[dict],
    images: dict[Any, dict],
    need_masks: bool,
    repair: bool,
) -> None:
    """Polygons and run lengths; the segmentation of an annotation that is to be dropped becomes "dropped"."""
    wrong: dict[str, list[str]] = {}
    short, missing = [], []
    for annotation in annotations:
        segmentation = annotation.get("segmentation")
        image = images[annotation["image_id"]]
        if not segmentation:
            if not annotation["iscrowd"]:
                missing.append(annotation)
            continue
        problems = segmentation_problems(segmentation, image)
        for problem in problems - {"points"}:
            wrong.setdefault(problem, []).append(f"{_name(annotation)} of {image['file_name']}")
        if "points" in problems:
            short.append(annotation)
    if need_masks:
        found.findings.extend(
            "annotations without a segmentation (to train on boxes alone, use "
            "configs/custom/faster_rcnn_comer_s.py, or cascade_rcnn, atss, gfl or dino there)",
            map(_name, missing),
        )
    for problem, cases in wrong.items():
        found.findings.extend(SEGMENTATION_PROBLEMS[problem], cases)
    what = "annotations with polygons of less than three points"
    if not repair:
        drops = "drops the polygons, and annotations without another one"
        found.findings.extend(what + TO_REPAIR.format(drops), map(_name, short))
        return
    found.note(f"{what}: dropped", map(_name, short), changed=True)
    if not wrong:
        for annotation in short:
            kept = [polygon for polygon in annotation["segmentation"] if len(polygon) >= 6]
            annotation["segmentation"] = kept or "dropped"


def _check_agreement(found: CocoFile, images: dict[Any, dict], need_masks: bool) -> None:
    """Boxes and segmentations that are of different places, once each of them is sound.

    Swapped or scaled coordinates, and shapes of other objects, all lie inside the image.
    """
    if found.findings:
        return
    apart, count = [], 0
    for annotation in found.content["annotations"]:
        segmentation = annotation.get("segmentation")
        if annotation["iscrowd"] or not segmentation:
            continue
        count += 1
        image = images[annotation["image_id"]]
        if (
            overlap(annotation["bbox"], box_of(segmentation, image["width"], image["height"]))
            < APART
        ):
            apart.append(_name_and_box(annotation))
    what = "annotations whose segmentation lies elsewhere than their box"
    if need_masks and len(apart) > count / 2:
        found.findings.extend(
            f"{what} (are the coordinates of one of them shares of the image, or x and y swapped? bbox "
            "is [x, y, width, height], of which x and y are the left upper corner)",
            apart,
        )
    else:
        found.note(what, apart)


def _check_repeated(found: CocoFile) -> None:
    """The same object twice, as files that were put together have it: one of the two cannot be found again."""
    places: Counter[tuple[Any, ...]] = Counter()
    repeated = []
    for annotation in found.content["annotations"]:
        place = (annotation["image_id"], annotation["category_id"], str(annotation["bbox"]))
        places[place] += 1
        if places[place] > 1:
            repeated.append(_name_and_box(annotation))
    found.note("annotations that repeat another one's image, category and box", repeated)


SEGMENTATION_PROBLEMS = {
    "form": "segmentations that are neither a list of polygons [[x0, y0, x1, y1, ...], ...] nor an RLE with size and counts",
    "finite": "polygons with a coordinate that is no finite number",
    "far": "polygons further outside their image than the image is large",
    "size": "RLEs of another size than their image ([height, width])",
    "counts": "RLEs whose counts do not fill their image",
}


def segmentation_problems(segmentation: Any, image: dict[str, Any]) -> set[str]:
    """Why an annotation's segmentation must not be rasterised: "points" and `SEGMENTATION_PROBLEMS`."""
    width, height = image["width"], image["height"]
    if isinstance(segmentation, dict):
        return {rle_problem(segmentation, width, height)} - {None}
    if not isinstance(segmentation, list):
        return {"form"}
    return {polygon_problem(polygon, width, height) for polygon in segmentation} - {None}


def _complete(found: CocoFile) -> None:
    """What pycocotools wants and a file may lack: areas, ids, info. For a file without findings."""
    if found.findings:
        return
    content = found.content
    images = {image["id"]: image for image in content["images"]}
    without = [a for a in content["annotations"] if not _is_area(a.get("area"))]
    for annotation in without:
        annotation["area"] = _area(annotation, images[annotation["image_id"]])
    found.note("annotations without area: computed", map(_name, without), changed=True)
    # COCO's evaluation stores the matched id, and 0 there means "no match".
    if not all(isinstance(a["id"], int) and a["id"] > 0 for a in content["annotations"]):
        for number, annotation in enumerate(content["annotations"], 1):
            annotation["id"] = number
        found.notes.append("annotation ids are missing, below 1 or no numbers: renumbered from 1")
        found.changed = True
    if "info" not in content and _pycocotools() < (2, 0, 11):
        content["info"] = {}  # it copies what is not there
        found.changed = True


def _area(annotation: dict[str, Any], image: dict[str, Any]) -> float:
    segmentation = annotation.get("segmentation")
    if not segmentation:
        return annotation["bbox"][2] * annotation["bbox"][3]
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, image["height"], image["width"])
    if isinstance(segmentation, list):
        segmentation = mask_util.merge(segmentation)
    return float(mask_util.area(segmentation))


def _whole_number(text: str) -> int | float:
    """Of 64 bits, as all that reads it later has them; larger ones become inexact, or infinite."""
    return int(text) if len(text) <= 18 else float(text)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _is_area(value: Any) -> bool:
    return _is_number(value) and value >= 0  # COCO's evaluation leaves out objects below 0


def _is_box(box: list) -> bool:
    return len(box) == 4 and all(map(_is_number, box)) and min(box[2:]) >= 0


def _is_share(box: list[float]) -> bool:
    """Whether a box lies within the first pixel, and not because it is that pixel."""
    return 0 < max(box) <= SHARES and min(box) >= 0 and not all(float(v).is_integer() for v in box)


def _name(annotation: dict[str, Any]) -> str:
    return f"annotation {annotation['id']}"


def _name_and_box(annotation: dict[str, Any]) -> str:
    return f"{_name(annotation)}: {annotation['bbox']}"


def _pycocotools() -> tuple[int, ...]:
    version = importlib.metadata.version("pycocotools")
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())
