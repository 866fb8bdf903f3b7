"""comer-d2 eval: train_net.py --eval-only on a run's folder or a checkpoint."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from .. import cli
from ..engine.overrides import text_override
from ..predictor import find_checkpoint, find_config
from .model import add_checkpoint

EXAMPLE = """\
examples:
  comer-d2 eval output/
  comer-d2 eval output/model_final.pth --num-gpus 8 dataloader.test.num_workers=4
  comer-d2 eval zoo.pth --config-file configs/COCO/mask_rcnn_comer_s_1x.py"""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None: this process's.
        prog: the command's name.

    Returns:
        The exit code.
    """
    return cli.run_tool(partial(evaluate, parse_arguments(argv, prog), prog), prog)


def parse_arguments(argv: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    """Read the command line; see EXAMPLE."""
    parser = cli.command_parser(
        prog,
        "Measure a model on its config's test data; writes evaluation.json into train.output_dir.",
        EXAMPLE,
    )
    add_checkpoint(parser, parser)
    parser.add_argument(
        "--num-gpus", type=int, metavar="N", help="processes, one GPU each (default 1)"
    )
    cli.add_overrides(parser)
    return parser.parse_intermixed_args(argv)


def evaluate(args: argparse.Namespace, prog: str | None) -> int:
    """Evaluate what a command line names."""
    checkpoint = find_checkpoint(args.model)
    config = find_config(checkpoint, args.config_file)
    processes = [] if args.num_gpus is None else ["--num-gpus", str(args.num_gpus)]
    named = [
        "--eval-only",
        "--config-file",
        str(config),
        text_override("train.init_checkpoint", str(checkpoint)),
    ]
    if Path(args.model).is_dir():  # also one that was moved since it was trained
        named.append(text_override("train.output_dir", args.model))
    allowed = [f"--allow-target={name}" for name in args.allow_target]
    return cli.main([*named, *processes, *allowed, *args.opts], prog)
