"""Pascal VOC: an .xml of boxes for every image."""

import re
import xml.etree.ElementTree as ET
from collections.abc import Collection, Sequence
from pathlib import Path

from ..findings import Findings, summarise
from .split import (
    FormatError,
    Reader,
    Shape,
    Split,
    at_size,
    build_split,
    copy_image,
    images_by_stem,
    left_out,
    natural,
    raise_findings,
    read_lines,
)


def read_voc(source: Path) -> list[Split]:
    """Read a folder in VOC's layout, or one of .xml files beside their images.

    Boxes count pixels from 1, both ends included, as Detectron2's own reader of VOC takes them.

    Args:
        source: with Annotations/ and JPEGImages/, and ImageSets/Main/*.txt where there are splits.

    Returns:
        The splits, or one that is called "all". Objects that are marked difficult are kept, with
        ``"difficult": 1``, and counted.

    Raises:
        FormatError: with every file that is wrong.
    """
    folder = source / "Annotations" if (source / "Annotations").is_dir() else source
    images = source / "JPEGImages" if (source / "JPEGImages").is_dir() else folder
    files = sorted(folder.rglob("*.xml"), key=lambda p: natural(str(p)))
    if not files:
        raise FormatError(f"{folder}: no .xml files: it should be a folder of Pascal VOC's")
    findings = Findings()
    objects, sizes = {}, {}
    for file in files:
        stem = file.relative_to(folder).with_suffix("").as_posix()
        objects[stem], sizes[stem] = _read_xml(file, findings)
    pictures = images_by_stem(images, objects, findings)
    findings.extend("files without an image of their name", sorted(set(objects) - set(pictures)))
    class_names = sorted({shape.label for shapes in objects.values() for shape in shapes})
    sets = {
        path.stem: [_stem(line, objects) for line in read_lines(path, findings) if line.strip()]
        for path in sorted((source / "ImageSets" / "Main").glob("*.txt"))
        if "_" not in path.stem  # aeroplane_train.txt: which images show one
    }  # fmt: skip
    if {"train", "val"} <= set(sets):
        sets.pop("trainval", None)  # the two together
    splits = []
    for name, members in (sets or {"all": list(objects)}).items():
        members = list(dict.fromkeys(members))
        unknown = [stem for stem in members if stem not in objects]
        findings.extend(f"images of ImageSets/Main/{name}.txt without an .xml", unknown)
        shapes: dict[Path, Reader] = {
            pictures[stem]: at_size(objects[stem], sizes[stem], f"{stem}.xml", findings)
            for stem in members
            if stem in objects and stem in pictures
        }
        hard = sum(
            "difficult" in shape.extra for stem in members for shape in objects.get(stem, ())
        )
        notes = [f"{hard} objects are marked difficult; VOC does not count them, COCO does"]
        splits.append(build_split(name, images, shapes, class_names, findings, notes if hard else ()))  # fmt: skip
    raise_findings(source, findings)
    if sets:
        strays = sorted(set(objects) - {stem for members in sets.values() for stem in members})
        if strays:
            splits[-1].notes.append(summarise(".xml files in no list of ImageSets/Main are left out", strays))  # fmt: skip
    else:
        splits[-1].notes += left_out(splits, "an .xml")
    return splits


def _stem(line: str, known: Collection[str]) -> str:
    """The image of a line of a list, whose name can hold spaces; lists of a class have 1, 0 or -1 behind it."""
    line = line.strip()
    return line if line in known else re.sub(r"\s+-?[01]$", "", line)


def _read_xml(path: Path, findings: Findings) -> tuple[list[Shape], tuple[int, int] | None]:
    """The objects, and the image's width and height where they are given."""
    try:
        root = ET.parse(path).getroot()
    except (ET.ParseError, OSError) as error:
        findings.add("files that are no XML", f"{path} ({error})")
        return [], None
    sides = [root.findtext(f"size/{key}", "").strip() for key in ("width", "height")]
    size = (int(sides[0]), int(sides[1])) if all(map(str.isdecimal, sides)) else (0, 0)
    shapes = []
    for number, item in enumerate(root.iter("object"), 1):
        where = f"{path}, object {number}"
        try:
            x0, y0, x1, y1 = (
                float(item.findtext(f"bndbox/{key}", ""))
                for key in ("xmin", "ymin", "xmax", "ymax")
            )
        except ValueError:
            findings.add("objects without a box", where)
            continue
        label = (item.findtext("name") or "").strip()
        if not label:
            findings.add("objects without a name", where)
            continue
        extra = {"difficult": 1} if item.findtext("difficult", "0").strip() == "1" else {}
        box = [x0 - 1, y0 - 1, x1 - x0 + 1, y1 - y0 + 1]
        shapes.append(Shape(label, box=box, where=where, extra=extra))
    return shapes, size if all(size) else None  # some tools write 0


def write_voc(splits: Sequence[Split], output: Path, *, boxes: bool) -> list[str]:
    """Write Annotations/, JPEGImages/ and ImageSets/Main/.

    Args:
        splits: of one dataset.
        output: an empty folder.
        boxes: VOC's .xml files hold nothing else: masks are left out, and have to be by wish.

    Returns:
        What was left out.

    Raises:
        FormatError: there are masks and `boxes` is not set, or names that VOC cannot tell apart.
    """
    annotations = [a for split in splits for a in split.content["annotations"]]
    masks = sum(bool(a.get("segmentation")) for a in annotations)
    if masks and not boxes:
        raise FormatError(f"{masks} objects have masks, which VOC's .xml files do not hold: --boxes leaves them out")  # fmt: skip
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (output / folder).mkdir(parents=True)
    crowds = 0
    for split in splits:
        names = {c["id"]: c["name"] for c in split.content["categories"]}
        stems = []
        for image, objects in split.objects():
            stem = Path(image["file_name"]).with_suffix("").as_posix()
            xml = output / "Annotations" / f"{stem}.xml"
            if xml.exists():
                raise FormatError(f"{image['file_name']}: two images of this name, which VOC cannot tell apart")  # fmt: skip
            copy_image(split, image, output / "JPEGImages")
            xml.parent.mkdir(parents=True, exist_ok=True)
            root = ET.Element("annotation")
            ET.SubElement(root, "filename").text = image["file_name"]
            size = ET.SubElement(root, "size")
            for key, value in (
                ("width", image["width"]),
                ("height", image["height"]),
                ("depth", 3),
            ):
                ET.SubElement(size, key).text = str(value)
            for annotation in objects:
                if annotation.get("iscrowd"):
                    crowds += 1
                    continue
                item = ET.SubElement(root, "object")
                ET.SubElement(item, "name").text = names[annotation["category_id"]]
                ET.SubElement(item, "difficult").text = str(annotation.get("difficult", 0))
                x, y, w, h = annotation["bbox"]
                corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + w, "ymax": y + h}
                bndbox = ET.SubElement(item, "bndbox")
                for key, value in corners.items():
                    ET.SubElement(bndbox, key).text = f"{value:.10g}"
            ET.indent(root)
            ET.ElementTree(root).write(xml, encoding="utf-8")
            stems.append(stem)
        (output / "ImageSets" / "Main" / f"{split.name}.txt").write_text(
            "".join(f"{stem}\n" for stem in stems), encoding="utf-8"
        )
    return [f"{crowds} crowds left out: VOC has none"] if crowds else []
