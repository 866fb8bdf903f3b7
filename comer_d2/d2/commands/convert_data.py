"""comer-d2 data convert: other tools' annotations to COCO's, and back."""

import argparse
import shlex
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..cli import command_parser, refuse_unused, run_tool
from ..data.formats.coco import check_objects, read_coco_file, write_coco
from ..data.formats.labelme import read_labelme, write_labelme
from ..data.formats.masks import read_instance_masks, write_label_maps
from ..data.formats.panoptic import write_panoptic
from ..data.formats.split import FormatError, Split
from ..data.formats.via import read_via
from ..data.formats.voc import read_voc, write_voc
from ..data.formats.yolo import read_yolo, write_yolo
from ..data.kind import SPLITS
from ..engine.overrides import typed_overrides
from ..errors import UserError
from ..new_folder import new_folder

EXAMPLE = """\
examples:
  comer-d2 data convert data.yaml converted/ --from yolo
  comer-d2 data convert VOC2007/ converted/ --from voc
  comer-d2 data convert labelled/ converted/ --from labelme
  comer-d2 data convert via_region_data.json converted/ --from via --images photos/ --class balloon
  comer-d2 data convert masks/ converted/ --from instance-masks --images photos/ --class cell
  comer-d2 data convert masks/ converted/ --from color-masks --images photos/ --colors labelmap.txt
  comer-d2 data convert train.json converted/ --from coco --images train/ --to yolo
  comer-d2 data convert train.json converted/ --from coco --images train/ --to panoptic --background wall"""

# What the annotations are in -> the options that it needs or can have.
FROM = {
    "yolo": (),
    "voc": (),
    "labelme": ("images",),
    "via": ("images", "class", "attribute"),
    "coco": ("images",),
    "instance-masks": ("images", "class"),
    "color-masks": ("images", "colors"),
}
TO: dict[str, Callable[..., list[str]]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "labelme": write_labelme,
    "panoptic": write_panoptic,
}


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None: this process's.
        prog: the command's name.

    Returns:
        The exit code.
    """
    parser = command_parser(
        prog,
        "Convert annotations. COCO's json refers to the images where they are; the other "
        "formats get a copy of them. Colours become label maps, which need no json.",
        EXAMPLE,
    )
    parser.add_argument("source", type=Path, help="file or folder of the annotations")
    parser.add_argument("output", type=Path, help="an empty or a new folder")
    parser.add_argument("--from", dest="source_format", required=True, choices=FROM)
    parser.add_argument("--to", choices=TO, help="(coco)")
    parser.add_argument("--images", type=Path, help="folder of the images (coco, via, masks; labelme: if not the source)")  # fmt: skip
    parser.add_argument("--class", dest="class", nargs="+", default=[], metavar="NAME", help="the class (via, instance-masks), or classes 1, 2, ... of values class * 1000 + number")  # fmt: skip
    parser.add_argument("--attribute", help="region attribute that holds the class (via)")
    parser.add_argument("--colors", type=Path, help="lines of a name and r g b (color-masks)")
    parser.add_argument(
        "--background",
        metavar="NAME",
        help="the class of all that is no object (to panoptic; background)",
    )
    parser.add_argument("--boxes", action="store_true", help="write boxes only, no masks")
    return run_tool(partial(convert, parser.parse_args(argv)), prog)


def convert(args: argparse.Namespace) -> None:
    """Convert what a command line names."""
    refuse_unused(args, _unused(args.source_format, args.to))
    with new_folder(args.output) as folder:
        if args.source_format == "color-masks":
            images, colors = _needed(args, "images"), _needed(args, "colors")
            write_label_maps(args.source, images, colors, folder)
            lines = [
                typed_overrides(
                    {
                        "dataset.train_images": images,
                        "dataset.train_masks": args.output / "masks",
                        "dataset.class_names": args.output / "classes.txt",
                    }
                )
            ]
        else:
            splits = read(args)
            tell(splits)
            write = TO[args.to or "coco"]
            if args.to == "panoptic":
                write = partial(write, background=args.background or "background")
            lines = write(splits, folder, boxes=args.boxes)
            lines += use_of(splits, args)
    print("\n".join(lines))


def tell(splits: Sequence[Split]) -> None:
    """Print what was read."""
    for split in splits:
        found = split.content
        print(
            f"{split.name}: {len(found['images'])} images, {len(found['annotations'])} objects, "
            f"{len(found['categories'])} classes: {', '.join(split.class_names)}"
        )
        print("".join(f"{split.name}: {note}\n" for note in split.notes), end="")


def use_of(splits: Sequence[Split], args: argparse.Namespace) -> list[str]:
    """What to do with what was written."""
    if args.to not in (None, "coco", "panoptic"):
        return [f"written: {args.output}"]
    lines = []
    for split in splits:
        path = args.output / f"{split.name}.json"
        if split.name in SPLITS:
            key = f"dataset.{split.name}"
            paths = {f"{key}_json": path, f"{key}_images": split.images}
            if args.to == "panoptic":
                paths[f"{key}_masks"] = args.output / split.name
            lines.append(typed_overrides(paths))
        else:
            lines.append(f"written: {path}")
    if len(splits) == 1 and args.to != "panoptic":
        split = shlex.join(["comer-d2", "data", "split", str(path), "--images", str(splits[0].images)])  # fmt: skip
        lines.append(f"in two parts: {split} PLACE")
    return lines


def _unused(source_format: str, to: str | None) -> dict[str, str]:
    """The options that mean nothing for two formats."""
    options = {option for taken in FROM.values() for option in taken} - set(FROM[source_format])
    unused = {
        option: ", ".join(name for name, taken in FROM.items() if option in taken)
        for option in options
    }
    if to != "panoptic":
        unused["background"] = "--to panoptic"
    if source_format == "color-masks":
        unused |= dict.fromkeys(("to", "boxes"), "objects, and colours become label maps")
    return unused


def read(args: argparse.Namespace) -> list[Split]:
    """Read what a command line names, in COCO's terms.

    Raises:
        UserError: what it needs is not there, or there is no object in it; for formats that have no later
            check, a box or polygon that is not sound.
    """
    splits = read_format(args)
    if not any(split.content["annotations"] for split in splits):
        raise FormatError(f"{args.source}: no objects in it")
    if args.to not in (None, "coco") and args.source_format != "coco":
        for split in splits:
            check_objects(args.source, split)
    return splits


def read_format(args: argparse.Namespace) -> list[Split]:
    """Read what a command line names."""
    if not args.source.exists():
        raise FormatError(f"{args.source}: there is no such file or folder")
    if args.source_format == "yolo":
        return read_yolo(args.source)
    if args.source_format == "voc":
        return read_voc(args.source)
    if args.source_format == "labelme":
        return read_labelme(args.source, args.images and _needed(args, "images"))
    images, names = _needed(args, "images"), vars(args)["class"]
    if args.source_format == "coco":
        return read_coco_file(args.source, images)
    if args.source_format == "via":
        if len(names) > 1:
            raise UserError("--class for via is one name: that of all regions without an attribute")
        return read_via(args.source, images, args.attribute, next(iter(names), None))
    if not names:
        raise UserError("--class is needed: the name of what the masks show")
    return read_instance_masks(args.source, images, names)


def _needed(args: argparse.Namespace, name: str) -> Path:
    value = getattr(args, name)
    if value is None:
        raise UserError(f"--{name} is needed for --from {args.source_format}")
    if not value.exists():
        raise UserError(f"--{name} {value}: there is no such file or folder")
    return value
