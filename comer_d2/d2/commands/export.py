"""comer-d2 export: a trained model in another form."""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..cli import run_tool
from ..engine.checkpoint import read_checkpoint
from ..export.hub import write_hub_folder
from ..predictor import find_checkpoint
from .model import add_model_arguments, model_of

FORMATS = ("hub",)
EXAMPLE = """\
example:
  comer-d2 export output/ shared/ --format hub --license apache-2.0      # then: comer-d2 push shared/ user/name"""


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
        description="Write a trained model in another form, and compare it with the model.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model_arguments(parser, thresholds=False)
    parser.add_argument("output", type=Path, help="where to")
    parser.add_argument("--format", required=True, choices=FORMATS, help="hub: a folder to share")
    parser.add_argument("--title", help="of the model card (the run's folder)")
    parser.add_argument(
        "--license",
        default="other",
        help="of the weights, as the hub names it: that of the pretrained ViT and the data (%(default)s)",
    )
    return run_tool(partial(export, parser.parse_args(argv)), prog)


def export(args: argparse.Namespace) -> None:
    """Export what a command line names."""
    model = model_of(args)
    checkpoint = find_checkpoint(args.model)
    written = write_hub_folder(
        model,
        args.output,
        license=args.license,
        title=args.title or checkpoint.parent.resolve().name,
        metrics=metrics_of(checkpoint),
    )
    print("\n".join(["compared with the model on an image: the same outputs", *written]))


def metrics_of(checkpoint: Path) -> dict[str, dict[str, float | None]]:
    """What the run's last evaluation measured, if it was of this checkpoint; else nothing.

    Args:
        checkpoint: in a run's folder.

    Returns:
        Task -> metric -> value.
    """
    path = checkpoint.with_name("evaluation.json")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        results, iteration = content["results"], content["iteration"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return results if read_checkpoint(str(checkpoint)).get("iteration") == iteration else {}
