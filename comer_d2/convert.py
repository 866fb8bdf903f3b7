"""comer-d2 convert: weights to this project's names, to the authors' or to timm's."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from .weights import FAMILIES, WeightsError, convert_weights, write_weights

EXAMPLE = """\
example:
  comer-d2 convert dinov2_vits14_pretrain.pth vit_s.safetensors
  comer-d2 convert output/model_final.pth for_mmdet.pth --to official

More: docs/PRETRAINED.md."""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None: this process's.
        prog: the command's name.

    Returns:
        The exit code.
    """
    args = parse_arguments(argv, prog)
    try:
        convert(args)
    except (WeightsError, OSError) as error:
        print(f"{prog}: error: {error}", file=sys.stderr)
        return 2
    return 0


def parse_arguments(argv: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    """Read the command line; see EXAMPLE."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Convert weights to this project's names, to the authors' or to timm's, and print "
        "what went where.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SRC", help="a checkpoint file, or timm:<model id>")
    parser.add_argument(
        "destination",
        metavar="DST",
        type=Path,
        help="the file to write: safetensors, or as torch.save does if it ends in .pth or .pt",
    )
    parser.add_argument(
        "--to",
        choices=("here", "official", "timm"),
        default="here",
        help="whose names: this project's (%(default)s, the default), the ViT-CoMer authors', timm's",
    )
    parser.add_argument("--family", choices=FAMILIES, help="of a ViT, where its names do not tell")
    parser.add_argument("--sha256", help="hexadecimal SHA-256 that SRC must have")
    parser.add_argument(
        "--allow",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="names in SRC, as shell patterns, to leave out; any other that is unknown is an error",
    )
    return parser.parse_args(argv)


def convert(args: argparse.Namespace) -> None:
    """Convert what a command line names."""
    weights, report = convert_weights(
        args.source, args.to, family=args.family, allow=args.allow, sha256=args.sha256
    )
    # The authors' frameworks look for this entry.
    wrapper = "state_dict" if args.to == "official" else "model"
    write_weights(args.destination, weights, wrapper=wrapper)
    print(report)
    elements = sum(tensor.numel() for tensor in weights.values())
    print(f"Wrote {args.destination}: {len(weights)} tensors, {elements:,} elements")
