"""comer-d2 data split: a part to train on, a part to validate with."""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ...weights.files import write_atomically
from ..cli import command_parser, run_tool
from ..data.formats.coco import read_coco_file
from ..data.split_coco import split_coco
from ..engine.overrides import typed_overrides
from ..errors import UserError
from ..new_folder import check_writable

EXAMPLE = """\
examples:
  comer-d2 data split all.json --images photos/ parts/ --val 0.2
  comer-d2 data split all.json --images frames/ parts/ --group '^[^/]+'     # folders stay together"""


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
        "Split a COCO json in two, with like shares of every class. Copies of an image "
        "stay together.",
        EXAMPLE,
    )
    parser.add_argument("json", type=Path, help="COCO annotations")
    parser.add_argument("output", type=Path, help="folder for train.json and val.json")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--val", type=float, default=0.2, help="share of the images (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--group", metavar="REGEX", help="what it finds in file_name stays together")  # fmt: skip
    return run_tool(partial(split, parser.parse_args(argv)), prog)


def split(args: argparse.Namespace) -> None:
    """Split what a command line names."""
    targets = [args.output / f"{name}.json" for name in ("train", "val")]
    there = [str(path) for path in targets if path.exists()]
    if there:
        raise UserError(f"{', '.join(there)}: there already; choose another folder")
    check_writable(args.output)
    (whole,) = read_coco_file(args.json, args.images)
    *parts, lines = split_coco(
        whole.content, args.images, share=args.val, seed=args.seed, group=args.group
    )
    args.output.mkdir(parents=True, exist_ok=True)
    for path, content in zip(targets, parts, strict=True):
        text = json.dumps(content)
        write_atomically(path, lambda temporary, text=text: temporary.write_text(text))
        key = f"dataset.{path.stem}"
        lines.append(typed_overrides({f"{key}_json": path, f"{key}_images": args.images}))
    print("\n".join(lines))
