#!/usr/bin/env python3
"""Convert weights to this project's names, to the authors' or to timm's, and print what went where."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    from comer_d2.weights import FAMILIES, WeightsError, convert_weights, write_weights
except ImportError as error:  # it says what is missing, and what to do
    sys.exit(f"convert_checkpoint.py: error: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, epilog="More: docs/PRETRAINED.md.")
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
    args = parser.parse_args()

    weights, report = convert_weights(
        args.source, args.to, family=args.family, allow=args.allow, sha256=args.sha256
    )
    # The authors' frameworks look for this entry.
    wrapper = "state_dict" if args.to == "official" else "model"
    write_weights(args.destination, weights, wrapper=wrapper)
    print(report)
    elements = sum(tensor.numel() for tensor in weights.values())
    print(f"Wrote {args.destination}: {len(weights)} tensors, {elements:,} elements")


if __name__ == "__main__":
    try:
        main()
    except (WeightsError, OSError) as error:
        sys.exit(f"convert_checkpoint.py: error: {error}")
