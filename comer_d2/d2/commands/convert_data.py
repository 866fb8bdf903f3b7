"""comer-d2 data convert: other tools' annotations to COCO's, and back."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ..cli import run_tool
from ..data.formats.coco import read_coco_file, write_coco
from ..data.formats.labelme import read_labelme, write_labelme
from ..data.formats.masks import read_instance_masks, write_label_maps
from ..data.formats.split import FormatError, Split
from ..data.formats.via import read_via
from ..data.formats.voc import read_voc, write_voc
from ..data.formats.yolo import read_yolo, write_yolo
from ..errors import UserError

EXAMPLE = """\
examples:
  comer-d2 data convert data.yaml converted/ --from yolo
  comer-d2 data convert VOC2007/ converted/ --from voc
  comer-d2 data convert labelled/ converted/ --from labelme
  comer-d2 data convert via_region_data.json converted/ --from via --images photos/ --class balloon
  comer-d2 data convert masks/ converted/ --from instance-masks --images photos/ --class cell
  comer-d2 data convert masks/ converted/ --from color-masks --images photos/ --colors labelmap.txt
  comer-d2 data convert train.json converted/ --from coco --images train/ --to yolo"""

FROM = ("yolo", "voc", "labelme", "via", "coco", "instance-masks", "color-masks")
TO: dict[str, Callable[..., list[str]]] = {
    "coco": write_coco,
    "yolo": write_yolo,
    "voc": write_voc,
    "labelme": write_labelme,
}


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None: this process's.
        prog: the command's name.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Convert annotations. COCO's json refers to the images where they are; the other "
        "formats get a copy of them. Colours become label maps, which need no json.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, help="file or folder of the annotations")
    parser.add_argument("output", type=Path, help="an empty or a new folder")
    parser.add_argument("--from", dest="source_format", required=True, choices=FROM)
    parser.add_argument("--to", dest="target_format", default="coco", choices=TO)
    parser.add_argument("--images", type=Path, help="folder of the images (coco, via, masks)")
    parser.add_argument("--class", dest="classes", nargs="+", default=[], metavar="NAME", help="the class (via, instance-masks), or classes 1, 2, ... of values class * 1000 + number")  # fmt: skip
    parser.add_argument("--attribute", help="region attribute that holds the class (via)")
    parser.add_argument("--colors", type=Path, help="lines of a name and r g b (color-masks)")
    parser.add_argument("--boxes", action="store_true", help="write boxes only, no masks")
    return run_tool(partial(convert, parser.parse_args(argv)), prog)


def convert(args: argparse.Namespace) -> None:
    """Convert what a command line names."""
    args.output.mkdir(parents=True, exist_ok=True)
    if any(args.output.iterdir()):
        raise UserError(f"{args.output} is not empty: choose another folder")
    if args.source_format == "color-masks":
        images, colors = _needed(args, "images"), _needed(args, "colors")
        print("\n".join(write_label_maps(args.source, images, colors, args.output)))
        return
    splits = read(args)
    for split in splits:
        found = split.content
        print(
            f"{split.name}: {len(found['images'])} images, {len(found['annotations'])} objects, "
            f"{len(found['categories'])} classes: {', '.join(split.class_names)}"
        )
        print("".join(f"{split.name}: {note}\n" for note in split.notes), end="")
    print("\n".join(TO[args.target_format](splits, args.output, boxes=args.boxes)))
    if [split.name for split in splits] == ["all"] and args.target_format == "coco":
        print(f"in two parts: comer-d2 data split {args.output / 'all.json'} --images {splits[0].images} PLACE")  # fmt: skip


def read(args: argparse.Namespace) -> list[Split]:
    """Read what a command line names, in COCO's terms."""
    if not args.source.exists():
        raise FormatError(f"{args.source}: there is no such file or folder")
    if args.source_format == "yolo":
        return read_yolo(args.source)
    if args.source_format == "voc":
        return read_voc(args.source)
    if args.source_format == "labelme":
        return read_labelme(args.source)
    images = _needed(args, "images")
    if args.source_format == "coco":
        return read_coco_file(args.source, images)
    if args.source_format == "via":
        return read_via(args.source, images, args.attribute, next(iter(args.classes), None))
    if not args.classes:
        raise UserError("--class is needed: the name of what the masks show")
    return read_instance_masks(args.source, images, args.classes)


def _needed(args: argparse.Namespace, name: str) -> Path:
    value = getattr(args, name)
    if value is None or not value.exists():
        raise UserError(f"--{name} is needed for {args.source_format}, and has to exist: {value}")
    return value
