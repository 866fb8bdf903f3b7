"""comer-d2 export: a trained model in another form."""

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..cli import command_parser, refuse_unused, run_tool
from ..engine.checkpoint import read_checkpoint
from ..errors import UserError
from ..export.hub import write_hub_folder
from ..export.program import WRITERS, check_target, export_program
from ..image_input import as_rgb
from ..new_folder import check_writable
from ..predictor import Predictor, find_checkpoint
from .model import add_model_arguments, model_of, validation_images

FORMATS = (*WRITERS, "hub")
IMAGES = 3  # that an exported program is compared on
EXAMPLE = """\
examples:
  comer-d2 export output/ model.onnx --format onnx
  comer-d2 export output/ model.onnx --format onnx --fixed-size 512 512 --resize --batch dynamic
  comer-d2 export output/ model.pt2 --format torch-export --fixed-size 512 512
  comer-d2 export output/ shared/ --format hub --license apache-2.0      # then: comer-d2 push shared/ user/name"""


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
        "Write a trained model in another form, and compare it with the model.",
        EXAMPLE,
    )
    add_model_arguments(parser, thresholds=False)
    parser.add_argument("output", type=Path, help="where to")
    parser.add_argument("--format", required=True, choices=FORMATS, help="hub: a folder to share")
    parser.add_argument(
        "--images",
        nargs="+",
        type=Path,
        help="that the program is compared on (the validation data's first)",
    )
    parser.add_argument(
        "--fixed-size",
        type=int,
        nargs=2,
        metavar=("H", "W"),
        help="images of this size alone, instead of any",
    )
    parser.add_argument(
        "--resize",
        action="store_true",
        help="take photos of any size, and resize them to fit into --fixed-size inside the program",
    )
    parser.add_argument(
        "--batch",
        type=batch_size,
        default=1,
        metavar="N",
        help="images at a time: a number, or dynamic (%(default)s)",
    )
    parser.add_argument("--title", help="of the model card (the run's folder)")
    parser.add_argument(
        "--license",
        help="of the weights, as the hub names it: that of the pretrained ViT and the data (other)",
    )
    return run_tool(partial(export, parser.parse_args(argv)), prog)


def export(args: argparse.Namespace) -> None:
    """Export what a command line names."""
    hub, program = ("title", "license"), ("images", "fixed_size", "resize")
    if args.format == "hub":
        refuse_unused(args, dict.fromkeys(program, "programs"))
        if args.batch != 1:
            raise UserError("--batch is for programs")
    else:
        refuse_unused(args, dict.fromkeys(hub, "a folder, --format hub"))
    size = args.fixed_size and tuple(args.fixed_size)
    if args.resize and not size:
        raise UserError("--resize needs the size that photos are to fit into: --fixed-size H W")
    if size and min(size) < 1:
        raise UserError(f"--fixed-size {size[0]} {size[1]}: positive numbers of pixels")
    # Before the model is read.
    if args.format == "hub":
        check_writable(args.output)
        export_folder(args, model_of(args))
        return
    check_target(args.output, args.format)
    if args.dtype != "float32" or args.flip or args.scales != [1.0]:
        raise UserError(
            "a program holds the model in float32 and sees every image once: leave --dtype, --scales and "
            "--flip out"
        )
    if args.device not in (None, "cpu"):
        raise UserError(f"--device {args.device}: programs are written and compared on the CPU")
    args.device = "cpu"
    model = model_of(args)
    files = args.images or validation_images(model, IMAGES)
    if not files:
        raise UserError(
            "the validation data are not here: name photos on which the program is compared with the model, "
            "with --images"
        )
    photos = [as_rgb(file) for file in files]
    if args.resize:
        photos.append(
            np.ascontiguousarray(photos[0].transpose(1, 0, 2)[: photos[0].shape[1] // 2 + 1])
        )  # of another shape
        images = [pixels_of(model, photo) for photo in photos]
    else:
        images = [padded(model, photo, size) for photo in photos]
    if not size:  # of another shape than what is traced
        divisor = max(model.model.backbone.size_divisibility, 1)
        images.append(images[0][:, : max(divisor, images[0].shape[1] - divisor)].contiguous())
    written = export_program(
        model.model,
        args.output,
        format=args.format,
        images=images,
        dynamic=not size,
        batch=args.batch,
        fit=size if args.resize else None,
        notes={"class_names": json.dumps(model.class_names), "image_format": model.image_format},
    )
    size = written.path.stat().st_size / 2**20
    print("\n".join(written.lines))
    print(
        f"in: {', '.join(written.inputs)}\nout: {', '.join(written.outputs)}\n{written.path}: {size:.1f} MiB"
    )


def export_folder(args: argparse.Namespace, model: Predictor) -> None:
    """Write a folder for the hub."""
    checkpoint = find_checkpoint(args.model)
    written = write_hub_folder(
        model,
        args.output,
        license=args.license or "other",
        title=args.title or checkpoint.parent.resolve().name,
        metrics=metrics_of(checkpoint),
        allow_targets=args.allow_target,
    )
    print("\n".join(["compared with the model on an image: the same outputs", *written]))


def padded(model: Predictor, rgb: np.ndarray, size: Sequence[int] | None) -> torch.Tensor:
    """An image as an exported program takes it: resized as the test data, and padded with the mean colour.

    Args:
        model: whose test data tell the size.
        rgb: (h, w, 3) uint8.
        size: (H, W) to fill; None: the next sides that the backbone takes.

    Returns:
        (3, H, W) float32, pixels from 0 to 255.

    Raises:
        UserError: the image is larger than `size`.
    """
    image = model.prepare(rgb).float().cpu()
    divisor = max(model.model.backbone.size_divisibility, 1)
    height, width = size or (-(-side // divisor) * divisor for side in image.shape[1:])
    if height < image.shape[1] or width < image.shape[2]:
        raise UserError(
            f"--fixed-size {height} {width}: the test data are resized to {tuple(image.shape[1:])}; "
            "choose a larger size, or smaller test augmentations (--override)"
        )
    result = model.model.pixel_mean.cpu().expand(3, height, width).clone()
    result[:, : image.shape[1], : image.shape[2]] = image
    return result


def pixels_of(model: Predictor, rgb: np.ndarray) -> torch.Tensor:
    """(h, w, 3) uint8 -> (3, h, w) float32, in the model's order of channels."""
    image = rgb[:, :, ::-1] if model.image_format == "BGR" else rgb
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1))).float()


def batch_size(text: str) -> int | None:
    """A number of images, from 1 on; "dynamic": None."""
    if text == "dynamic":
        return None
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: a number from 1 on, or dynamic")
    return number


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
