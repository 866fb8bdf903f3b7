"""comer-d2 data show: a sheet of a dataset's images with their annotations."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..cli import add_overrides, config_of, config_parser, run_tool
from ..comparison import draw_truth
from ..data.custom import resolve_dataset
from ..engine.checks import dataset_names
from ..errors import UserError
from ..new_folder import check_writable
from ..visualization.sheet import picture_kind, picture_sheet, save_picture

EXAMPLE = """\
examples:
  comer-d2 data show --config-file configs/custom/screws.py
  comer-d2 data show --config-file configs/custom/screws.py --split val --count 24 --random 0"""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None: this process's.
        prog: the command's name.

    Returns:
        The exit code.
    """
    parser = config_parser(
        prog,
        "Draw a config's images with their annotations, as they are read for training.",
        EXAMPLE,
    )
    parser.add_argument("--split", choices=("train", "val"), default="train", help="(%(default)s)")
    parser.add_argument("--count", type=int, default=12, help="number of images (%(default)s)")
    parser.add_argument("--random", type=int, metavar="SEED", help="drawn by lot, not the first")
    parser.add_argument("--columns", type=int, default=4, help="pictures in a row (%(default)s)")
    parser.add_argument("--output", default="dataset.png", help="picture (%(default)s)")
    add_overrides(parser)
    return run_tool(partial(show, parser.parse_intermixed_args(argv)), prog)


def show(args: argparse.Namespace) -> None:
    """Draw what a command line names."""
    if args.count < 1 or args.columns < 1:
        raise UserError("--count and --columns must be at least 1")
    if args.random is not None and args.random < 0:
        raise UserError(f"--random {args.random}: a number from 0")
    picture_kind(args.output)
    check_writable(Path(args.output).parent)
    cfg = config_of(args)
    resolve_dataset(cfg)
    names = dataset_names(cfg, "train" if args.split == "train" else "test")
    if not names:
        raise UserError(f"the config has no data for {args.split}")
    pictures = draw_truth(names[0], count=args.count, seed=args.random)
    sheet = picture_sheet(
        [(picture,) for picture in pictures],
        headings=("",),
        title=names[0],
        subtitle=f"{len(pictures)} images",
        columns=args.columns,
    )
    print(f"Picture sheet: {save_picture(sheet, Path(args.output))}")
