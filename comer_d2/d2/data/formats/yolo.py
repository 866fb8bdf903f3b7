"""YOLO: data.yaml, and a .txt of normalised boxes or polygons for every image."""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from ..findings import Findings
from ..images import IMAGE_ENDINGS
from .split import (
    FormatError,
    Reader,
    Shape,
    Split,
    build_split,
    copy_image,
    raise_findings,
    read_lines,
)

SPLITS = ("train", "val", "test")
ALIASES = {"val": "validation"}


def read_yolo(source: Path) -> list[Split]:
    """Read what a data.yaml names.

    Args:
        source: the data.yaml, or its folder.

    Returns:
        Its splits. An image without a .txt is one without objects, as YOLO has it, and counted. A `test` whose
        photos were not handed out is left out with a note: it is no part of training.

    Raises:
        FormatError: with every line that is wrong.
    """
    path = source / "data.yaml" if source.is_dir() else source
    try:
        described = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: cannot be read ({error})") from error
    if not isinstance(described, dict) or not described.get("names"):
        raise FormatError(f"{path}: no `names`: it should be a YOLO data.yaml, with train, val and names")  # fmt: skip
    if "kpt_shape" in described:
        raise FormatError(f"{path}: keypoints (kpt_shape), which no model here is trained on")
    class_names = _class_names(path, described["names"])
    findings, splits = Findings(), []
    if described.get("nc", len(class_names)) != len(class_names):
        findings.add(f"nc is {described['nc']!r}, and there are {len(class_names)} names")
    used: set[Path] = set()
    for split in SPLITS:
        given = described.get(split) or described.get(ALIASES.get(split))
        if not given:
            continue
        entries = given if isinstance(given, list) else [given]
        if not all(isinstance(entry, str) for entry in entries):
            raise FormatError(f"{path}: {split}: {given!r}: a folder, a .txt list of files, or several of them")  # fmt: skip
        places = [_place(path, described, entry) for entry in entries]
        if split == "test" and splits and not any(place.exists() for place in places):
            splits[-1].notes.append(f"test is left out: there is no {places[0]}")
            continue
        files = _images(places, findings)
        if not files:
            continue
        if len({file.is_absolute() for file in files}) > 1:
            files = [file.absolute() for file in files]
        shapes: dict[Path, Reader] = {}
        missing = 0
        labels = {file: _label_file(file) for file in files}
        used |= set(labels.values())
        counts = Counter(label for label in labels.values() if label.is_file())
        findings.extend("images whose names differ in the ending alone have one .txt", (str(label) for label, count in counts.items() if count > 1))  # fmt: skip
        for file, label in labels.items():
            missing += not label.is_file()
            shapes[file] = partial(_read_labels, label, class_names, findings)
        folder = files[0].parent if len({f.parent for f in files}) == 1 else _common(files)
        notes = [f"{missing} images without a .txt: they have no objects"] if missing else []
        splits.append(build_split(split, folder, shapes, class_names, findings, notes))
    if not splits and not findings:
        findings.add("names no images: train and val are folders, or .txt lists of files")
    raise_findings(path, findings)
    folders = {label.parent for label in used if "labels" in label.parts}
    strays = sorted({stray for folder in folders for stray in folder.glob("*.txt")} - used)
    if strays:
        splits[-1].notes.append(f"{len(strays)} .txt of no image of data.yaml's are left out: {strays[0]}")  # fmt: skip
    return splits


def _class_names(path: Path, names: Any) -> list[str]:
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise FormatError(f"{path}: names has the numbers {', '.join(map(str, names))}: they count from 0")  # fmt: skip
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list):
        raise FormatError(f"{path}: names: {names!r}: a list of the classes' names")
    # YAML's yes, no, on, off and null are no texts.
    wrong = [n for n in names if isinstance(n, bool) or not isinstance(n, (str, int, float))]
    if wrong:
        raise FormatError(f"{path}: names: {wrong[0]!r} is no text: put the name in quotation marks")  # fmt: skip
    return [str(name) for name in names]


def _common(files: Sequence[Path]) -> Path:
    shared = files[0].parent
    while not all(file.is_relative_to(shared) for file in files):
        shared = shared.parent
    return shared


def _place(path: Path, described: dict[str, Any], entry: str) -> Path:
    """Where an entry of data.yaml is, or should be."""
    roots = [path.parent / str(described.get("path") or "."), path.parent]
    # Exports often say ../train/images and lie beside train/.
    tried = [root / part for root in roots for part in (entry, entry.removeprefix("../"))]
    return next((place for place in tried if place.exists()), tried[0])


def _images(places: Sequence[Path], findings: Findings) -> list[Path]:
    """The image files of folders, or of lists of files."""
    files: list[Path] = []
    for place in places:
        if not place.exists():
            findings.add("folders or lists that are not there", str(place))
        elif place.is_dir():
            inside = (p for p in place.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS)
            files += (images := sorted(inside))
            findings.extend("folders without an image", [] if images else [str(place)])
        else:
            lines = [line.strip() for line in read_lines(place, findings)]
            files += [place.parent / line for line in lines if line]
    return files


def _label_file(image: Path) -> Path:
    """.../images/a.jpg -> .../labels/a.txt, for the last folder of that name."""
    parts = list(image.parts)
    for i in range(len(parts) - 2, -1, -1):
        if parts[i] == "images":
            parts[i] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _read_labels(
    path: Path, class_names: Sequence[str], findings: Findings, width: int, height: int
) -> list[Shape]:
    if not path.is_file():
        return []
    shapes = []
    for number, line in enumerate(read_lines(path, findings), 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            label, *values = map(float, line.split())
        except ValueError:
            findings.add("lines that are no numbers", where)
            continue
        if label not in range(len(class_names)):
            findings.add(f"classes that are not 0 to {len(class_names) - 1}", f"{where}: {label:g}")
        elif not all(0 <= v <= 1 for v in values):
            findings.add("coordinates that are not shares of the image, 0 to 1", where)
        elif len(values) == 4:
            x, y, w, h = values
            box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
            shapes.append(Shape(class_names[int(label)], box=box, where=where))
        elif len(values) >= 6 and len(values) % 2 == 0:
            points = [v * (height if i % 2 else width) for i, v in enumerate(values)]
            shapes.append(Shape(class_names[int(label)], polygons=[points], where=where))
        else:
            findings.add(
                "lines that are neither a class and a box (4 numbers) nor a class and a polygon (6 or more)",
                where,
            )
    return shapes


def write_yolo(splits: Sequence[Split], output: Path, *, boxes: bool) -> list[str]:
    """Write data.yaml, images/ and labels/.

    Args:
        splits: of one dataset.
        output: an empty folder.
        boxes: write boxes only, also where there are polygons.

    Returns:
        What was left out or called otherwise.

    Raises:
        FormatError: objects that YOLO cannot hold, or parts that it does not know.
    """
    findings = Findings()
    crowds = 0
    names = _split_names(splits)
    for split, name in zip(splits, names, strict=True):
        for image, annotations in split.objects():
            lines = []
            for annotation in annotations:
                if annotation.get("iscrowd"):
                    crowds += 1
                    continue
                line = _line(annotation, image, split, boxes, findings)
                lines.append(line)
            copy_image(split, image, output / "images" / name)
            label = (output / "labels" / name / image["file_name"]).with_suffix(".txt")
            label.parent.mkdir(parents=True, exist_ok=True)
            if label.exists():
                findings.add("images whose names differ in the ending alone", image["file_name"])
            label.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    raise_findings("what YOLO cannot hold", findings)
    # No `path`: YOLO's tools take a relative one from their own folder of datasets, not from this file's.
    described = {name: f"images/{name}" for name in names}
    described["names"] = dict(enumerate(splits[0].class_names))
    text = yaml.safe_dump(described, sort_keys=False, allow_unicode=True)
    (output / "data.yaml").write_text(text, encoding="utf-8")
    notes = [f"{crowds} crowds left out: YOLO has none"] if crowds else []
    notes += [f"{split.name} is called {name} in data.yaml" for split, name in zip(splits, names) if split.name != name]  # fmt: skip
    notes += [f"data.yaml has no {name}, which YOLO's tools ask for" for name in ("train", "val") if name not in names]  # fmt: skip
    return notes


def _split_names(splits: Sequence[Split]) -> list[str]:
    """What YOLO calls the parts: one of another name is the one to train on."""
    given = [split.name for split in splits]
    others = [name for name in given if name not in SPLITS]
    if len(others) > 1 or (others and "train" in given):
        raise FormatError(f"YOLO knows {', '.join(SPLITS)}, and no {' and no '.join(others)}")
    return ["train" if name in others else name for name in given]


def _line(
    annotation: dict[str, Any], image: dict[str, Any], split: Split, boxes: bool, findings: Findings
) -> str:
    width, height = image["width"], image["height"]
    label = sorted(c["id"] for c in split.content["categories"]).index(annotation["category_id"])
    segmentation = annotation.get("segmentation")
    if boxes or not segmentation:
        x, y, w, h = annotation["bbox"]
        values = [(x + w / 2) / width, (y + h / 2) / height, w / width, h / height]
    elif isinstance(segmentation, dict) or len(segmentation) > 1:
        findings.add(
            "objects of several polygons, or an RLE: YOLO has one polygon each (--boxes writes boxes alone)",
            f"annotation {annotation['id']}",
        )
        values = []
    else:
        values = [v / (height if i % 2 else width) for i, v in enumerate(segmentation[0])]
    # Exactly at the edge after rounding; further outside `data check` says so.
    return " ".join([str(label), *(f"{min(max(v, 0.0), 1.0):.10g}" for v in values)])
