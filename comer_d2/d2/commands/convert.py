"""comer-d2 convert: weights for a config's model, to the names here or to the authors'."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from ...weights import FAMILIES, WeightsError, convert_weights, write_weights
from ..cli import add_overrides, config_of, config_parser, run_tool
from ..data.custom import resolve_dataset
from ..engine.checks import build
from ..errors import UserError

EXAMPLE = """\
example:
  comer-d2 convert --config-file configs/COCO/mask_rcnn_comer_s_3x.py dinov2_vits14_pretrain.pth vit_s.safetensors
  comer-d2 convert --config-file output/config.yaml output/model_final.pth for_mmdet.pth --to official

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
    return run_tool(partial(convert, args), prog)


def parse_arguments(argv: Sequence[str] | None, prog: str | None) -> argparse.Namespace:
    """Read the command line; see EXAMPLE."""
    parser = config_parser(
        prog,
        "Convert weights for a config's model, to the names here or to the authors', and print what "
        "went where.",
        EXAMPLE,
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
        choices=("here", "official"),
        default="here",
        help="whose names: this project's (%(default)s, the default), or the ViT-CoMer authors'",
    )
    parser.add_argument("--family", choices=FAMILIES, help="of a ViT, where its names do not tell")
    parser.add_argument("--sha256", help="hexadecimal SHA-256 that SRC must have")
    parser.add_argument(
        "--allow",
        nargs="+",
        default=[],
        metavar="PATTERN",
        help="names, as shell patterns, to leave out; any other that does not fit is an error",
    )
    add_overrides(parser)
    return parser.parse_intermixed_args(argv)


def convert(args: argparse.Namespace) -> None:
    """Convert what a command line names."""
    cfg = config_of(args)
    if "dataset" in cfg and cfg.dataset.num_classes is None:
        resolve_dataset(cfg)  # whose classes size the model's heads; a run's config.yaml has them
    # The model says what there must be; it needs no memory for that.
    with torch.device("meta"):
        model = build(cfg, "model")
    try:
        weights, report = convert_weights(
            model, args.source, args.to, family=args.family, allow=args.allow, sha256=args.sha256
        )
        # The authors' frameworks look for this entry.
        wrapper = "state_dict" if args.to == "official" else "model"
        write_weights(args.destination, weights, wrapper=wrapper)
    except (WeightsError, OSError) as error:
        raise UserError(str(error)) from error
    print(report)
    elements = sum(tensor.numel() for tensor in weights.values())
    print(f"Wrote {args.destination}: {len(weights)} tensors, {elements:,} elements")
