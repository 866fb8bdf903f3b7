"""Pictures as annotations: instances as numbers of pixels, classes as colours."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image
from tqdm import tqdm

from ..findings import Findings
from ..images import IMAGE_ENDINGS, BadImage, check_image, read_image
from .split import (
    FormatError,
    Reader,
    Shape,
    Split,
    at_size,
    build_split,
    images_by_stem,
    left_out,
    natural,
    raise_findings,
)

CITYSCAPES = 1000  # an instance's number there: class * 1000 + number
LINE = 80  # characters of a wrong line that an error shows
IGNORED = 255  # the label of pixels that do not count


def read_instance_masks(source: Path, images: Path, class_names: Sequence[str]) -> list[Split]:
    """Read pictures of 8 or 16 bits in which each value but 0 is an object.

    Args:
        source: the folder of the pictures, named as their images.
        images: the folder of the images.
        class_names: one name: the class of all objects. More: a value is class * 1000 + number, with
            classes from 1 (Cityscapes has it so).

    Returns:
        One split, "all", with masks as RLE.

    Raises:
        FormatError: with every picture that is wrong.
    """
    findings = Findings()
    shapes: dict[Path, Reader] = {}
    for image, path in tqdm(_pairs(source, images, findings), "masks", unit="image"):
        try:
            with Image.open(path) as picture:
                values = np.asarray(picture)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            findings.add("masks that cannot be read", f"{path} ({error})")
            continue
        if path.suffix.lower() in (".jpg", ".jpeg"):
            findings.add("masks in JPEG, which changes their values: use PNG", str(path))
            continue
        if values.ndim != 2 or values.dtype.kind not in "iub":
            findings.add("masks that are not one channel of whole numbers", str(path))
            continue
        objects = []
        for value in np.unique(values[values > 0]).tolist():
            number = value // CITYSCAPES if len(class_names) > 1 else 1
            if not 1 <= number <= len(class_names):
                findings.add(f"values whose class is not 1 to {len(class_names)}", f"{path}: {value}")  # fmt: skip
                continue
            rle = mask_util.encode(np.asfortranarray(values == value))
            extra = {
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                "area": int(mask_util.area(rle)),
            }
            box = mask_util.toBbox(rle).tolist()
            objects.append(Shape(class_names[number - 1], box=box, where=str(path), extra=extra))
        size = (values.shape[1], values.shape[0])
        shapes[image] = at_size(objects, size, str(path), findings)
    split = build_split("all", images, shapes, class_names, findings)
    raise_findings(source, findings)
    split.notes += left_out([split], "a mask")
    return [split]


def write_label_maps(source: Path, images: Path, colors: Path, output: Path) -> None:
    """Colours -> label maps, which `dataset.format=semantic` trains on.

    Args:
        source: the folder of coloured masks, named as their images.
        images: the folder of the images.
        colors: a file of lines ``name r g b`` or CVAT's ``name:r,g,b::``; the order gives the labels.
            The name ``ignore`` (or ``void``) stands for pixels that do not count.
        output: an empty folder; it gets masks/ and classes.txt.

    Raises:
        FormatError: with every mask that has another colour.
    """
    table = _read_colors(colors)
    names = [name for name in table if name not in ("ignore", "void")]
    if not 0 < len(names) < IGNORED:
        raise FormatError(f"{colors}: {len(names)} classes; a label map has 1 to {IGNORED - 1}")
    code = {
        _packed(np.array(color)).item(): names.index(name) if name in names else IGNORED
        for name, color in table.items()
    }
    keys = np.array(sorted(code))
    labels = np.array([code[key] for key in keys.tolist()], np.uint8)
    findings = Findings()
    for image, path in tqdm(_pairs(source, images, findings), "masks", unit="image"):
        try:
            packed = _packed(read_image(path))
            width, height = check_image(image)
        except BadImage as error:
            findings.add("masks or images that cannot be read", str(error))
            continue
        if packed.shape != (height, width):
            findings.add("masks of another size than their image", f"{path}: {packed.shape[1]} x {packed.shape[0]}, the image: {width} x {height}")  # fmt: skip
            continue
        place = np.searchsorted(keys, packed).clip(max=len(keys) - 1)
        strange = keys[place] != packed
        if strange.any():
            value = int(packed[strange][0])
            color = value >> 16, value >> 8 & 255, value & 255
            findings.add(f"masks with colours that {colors} does not name", f"{path}: {color}, {strange.mean():.2%} of it")  # fmt: skip
            continue
        target = (output / "masks" / image.relative_to(images)).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(labels[place]).save(target)
    raise_findings(source, findings)
    (output / "classes.txt").write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _packed(color: np.ndarray) -> np.ndarray:
    """(..., 3) of 8 bits -> (...), one number a colour."""
    return color.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def _read_colors(path: Path) -> dict[str, tuple[int, int, int]]:
    table: dict[str, tuple[int, int, int]] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: cannot be read ({error})") from error
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        name, *values = text.partition("::")[0].replace(":", " ").replace(",", " ").rsplit(maxsplit=3)  # fmt: skip
        if values == ["r", "g", "b"]:  # the header of a .csv
            continue
        color = tuple(int(v) for v in values if v.isdigit() and int(v) <= 255)
        if len(color) != 3 or name in table or color in table.values():
            raise FormatError(f"{path}:{number}: {line[:LINE]!r}: a name and three numbers, 0 to 255, each once")  # fmt: skip
        table[name] = (color[0], color[1], color[2])
    if not table:
        raise FormatError(f"{path}: no colours: lines of a name and three numbers")
    return table


def _pairs(source: Path, images: Path, findings: Findings) -> list[tuple[Path, Path]]:
    """Every mask with the image of its name."""
    masks = sorted((p for p in source.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS), key=lambda p: natural(str(p)))  # fmt: skip
    if not masks:
        findings.add("no masks in it")
    names = [(mask.relative_to(source).with_suffix("").as_posix(), mask) for mask in masks]
    counts = Counter(name for name, _ in names)
    findings.extend("masks whose names differ in the ending alone", (str(m) for n, m in names if counts[n] > 1))  # fmt: skip
    pictures = images_by_stem(images, counts, findings)
    absent = [str(mask) for name, mask in names if name not in pictures]
    findings.extend(f"masks without an image of their name in {images}", absent)
    return [(pictures[name], mask) for name, mask in names if name in pictures]
