"""comer-d2 replay: compute a training step again that went wrong."""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from .. import cli
from ..engine.config import load_config, settle_device
from ..engine.replay import read_record, replay
from ..predictor import find_config

EXAMPLE = """\
A run leaves step_<iteration>.pth in its folder when a loss or a gradient is not finite, or a loss is a spike
(train.spike_factor): the weights before the step, its images, losses, gradient norms and random states.

examples:
  comer-d2 replay output/step_0001234.pth
  comer-d2 replay output/step_0001234.pth train.amp.enabled=false     # is the precision to blame?
  comer-d2 replay output/step_0001234.pth --rank 3 train.device=cpu"""

ONE_OF_SEVERAL = """\
The step had {} processes, and this is one of them alone: its batch norms, and the counts of objects or pixels that
losses are divided by, are those of its own images, and the recorded gradients are the mean of all. Values differ."""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None: this process's.
        prog: the command's name.

    Returns:
        The exit code.
    """
    parser = cli.command_parser(
        prog,
        "Compute a recorded training step again: losses, gradients, and where a NaN comes up first.",
        EXAMPLE,
    )
    parser.add_argument("file", metavar="FILE", type=Path, help="step_<iteration>.pth of a run")
    parser.add_argument(
        "--config-file", metavar="FILE", help="its config (the config.yaml beside it)"
    )
    parser.add_argument(
        "--rank", type=int, default=0, metavar="N", help="the process whose images are taken (0)"
    )
    cli.add_allow_target(parser)
    cli.add_overrides(parser)
    return cli.run_tool(partial(show, parser.parse_intermixed_args(argv)), prog)


def show(args: argparse.Namespace) -> None:
    """Replay what a command line names, and print it beside what was recorded."""
    record = read_record(args.file)
    config = str(find_config(args.file, args.config_file))
    cfg = load_config(config, args.opts, allow_targets=args.allow_target)
    settle_device(cfg.train)
    result = replay(cfg, record, args.rank)
    print(f"{record['reason']}\n\nimages of process {args.rank}:")
    print("\n".join(f"  {name}" for name in result.images))
    if (processes := len(record["random"])) > 1:
        print(f"\n{ONE_OF_SEVERAL.format(processes)}")
    recorded = {
        name: values[args.rank]
        for name, values in record["losses"].items()
        if args.rank < len(values)
    }
    print(f"\n{side_by_side('loss', recorded, result.losses)}")
    print(f"\n{side_by_side('gradient norm', record['grad_norms'], result.grad_norms)}")
    if result.error:
        print(f"the model gave up: {result.error}")
    print(f"\nfirst module whose output is not finite: {result.first_not_finite or 'none'}")


def side_by_side(title: str, recorded: Mapping[str, float], replayed: Mapping[str, float]) -> str:
    """A table of values by name; empty where nothing was recorded."""
    width = max(map(len, [title, *replayed])) + 2
    lines = [f"{title:<{width}}{'recorded':>14}{'replayed':>14}"]
    for name, value in replayed.items():
        before = f"{recorded[name]:.6g}" if name in recorded else ""
        lines.append(f"{name:<{width}}{before:>14}{value:14.6g}")
    return "\n".join(lines)
