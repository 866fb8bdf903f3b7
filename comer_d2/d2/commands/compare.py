"""comer-d2 compare: a sheet of ground truth beside prediction."""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from ..cli import command_parser, run_tool
from ..comparison import compare
from ..data.custom import resolve_dataset
from ..engine.checks import dataset_names
from ..errors import UserError
from ..new_folder import check_writable
from ..predictor import Threshold
from ..results import TASKS
from ..visualization.sheet import picture_kind, picture_sheet, save_picture
from .model import add_model_arguments, model_of, threshold_of

EXAMPLE = """\
example:
  comer-d2 compare output/ --count 12 --output sheet.png"""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None: this process's.
        prog: the command's name.

    Returns:
        The exit code.
    """
    return run_tool(partial(draw_sheet, parse_arguments(argv, prog)), prog)


def parse_arguments(argv: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    """Read the command line; see EXAMPLE."""
    parser = command_parser(
        prog,
        "Draw the first images of the test dataset: ground truth beside prediction.",
        EXAMPLE,
    )
    add_model_arguments(parser)
    parser.add_argument("--output", default="predictions.png", help="picture (%(default)s)")
    parser.add_argument("--count", type=int, default=12, help="number of images (%(default)s)")
    parser.add_argument("--columns", type=int, default=3, help="pairs in a row (%(default)s)")
    parser.add_argument("--task", choices=TASKS, help="which of a model's tasks (the first it has)")
    parser.add_argument("--title", default="", help="headline; the model's path by default")
    return parser.parse_args(argv)


def draw_sheet(args: argparse.Namespace) -> None:
    """Draw what a command line names."""
    if args.count < 1 or args.columns < 1:
        raise UserError("--count and --columns must be at least 1")
    picture_kind(args.output)
    check_writable(Path(args.output).parent)
    model = model_of(args)
    resolve_dataset(model.cfg)
    names = dataset_names(model.cfg, "test")
    if not names:
        raise UserError("the config's dataloader.test.dataset has no names")
    threshold = threshold_of(args, model)
    pairs = compare(model, names[0], count=args.count, task=args.task, threshold=threshold)
    scores = "" if (args.task or model.tasks[0]) == "semantic" else f"; {described(threshold)}"
    sheet = picture_sheet(
        pairs,
        title=args.title or str(args.model),
        subtitle=f"first {len(pairs)} images of {names[0]}{scores}",
        columns=args.columns,
    )
    print(f"Picture sheet: {save_picture(sheet, Path(args.output))}")


def described(threshold: Threshold) -> str:
    """What a sheet says of the scores that are drawn."""
    if not isinstance(threshold, Mapping):
        return f"score at least {threshold:g}"
    lowest, highest = min(threshold.values()), max(threshold.values())
    return f"score at least {lowest:g} to {highest:g}, by class"
