"""comer-d2 report: a page on a run, from its last evaluation."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..cli import add_allow_target, command_parser, run_tool
from ..data.custom import resolve_dataset
from ..engine.config import load_config
from ..engine.overrides import text_override
from ..report.build import write_report

EXAMPLE = """\
example:
  comer-d2 report output/          # writes output/report/index.html"""


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
        "Write a page on a run: curves, tables by class, the images it does worst on. "
        "Training and `comer-d2 eval` write it themselves.",
        EXAMPLE,
    )
    parser.add_argument("folder", type=Path, help="a run's output folder, which was evaluated")
    add_allow_target(parser)
    return run_tool(partial(report, parser.parse_args(argv)), prog)


def report(args: argparse.Namespace) -> None:
    """Write the page that a command line asks for."""
    config = args.folder / "config.yaml"
    overrides = [text_override("train.output_dir", str(args.folder))]
    cfg = load_config(str(config), overrides, allow_targets=args.allow_target)
    resolve_dataset(cfg)
    print(f"Report: {write_report(cfg)}")
