"""The arguments that name a trained model."""

import argparse
from itertools import islice
from pathlib import Path

from omegaconf import OmegaConf

from ..cli import add_allow_target, refuse_unused
from ..data.images import IMAGE_ENDINGS
from ..errors import UserError
from ..predictor import DEFAULT_THRESHOLD, DTYPES, Predictor, Threshold, load, thresholds_of


def add_checkpoint(parser: argparse.ArgumentParser, group: argparse._ActionsContainer) -> None:
    """Add a trained model, and to `group` where its config is."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a run's output folder (its model_best.pth, or else model_final.pth), or a checkpoint",
    )
    group.add_argument(
        "--config-file", metavar="FILE", help="its config (the config.yaml beside the checkpoint)"
    )
    add_allow_target(group)


def add_model_arguments(parser: argparse.ArgumentParser, *, thresholds: bool = True) -> None:
    """Add the model and how it predicts; `model_of` and `threshold_of` read them.

    Args:
        parser: of a command.
        thresholds: whether thresholds are given on the command line.
    """
    group = parser.add_argument_group("model")
    add_checkpoint(parser, group)
    group.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="value of the config to change",
    )
    group.add_argument("--device", help="cuda or cpu (the config's train.device)")
    group.add_argument("--dtype", choices=DTYPES, default="float32", help="(%(default)s)")
    group.add_argument(
        "--scales",
        type=float,
        nargs="+",
        default=[1.0],
        metavar="X",
        help="test-time augmentation: sizes relative to the test data's, such as 0.75 1 1.25",
    )
    group.add_argument("--flip", action="store_true", help="and every size mirrored")
    if not thresholds:
        return
    group.add_argument(
        "--threshold",
        type=float,
        help=f"lowest score of an object, 0 to 1 ({DEFAULT_THRESHOLD})",
    )
    group.add_argument(
        "--class-threshold",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="the same for one class",
    )


def model_of(args: argparse.Namespace) -> Predictor:
    """Load the model that a command line names."""
    return load(
        args.model,
        config_file=args.config_file,
        overrides=args.override,
        allow_targets=args.allow_target,
        device=args.device,
        dtype=args.dtype,
        scales=args.scales,
        flip=args.flip,
    )


def threshold_of(args: argparse.Namespace, model: Predictor) -> Threshold:
    """The thresholds that a command line asks for."""
    if model.tasks == ("semantic",):
        unused = "models that find objects, not for those of a label map alone"
        refuse_unused(args, dict.fromkeys(("threshold", "class_threshold"), unused))
    given = {}
    for entry in args.class_threshold:
        name, _, value = entry.rpartition("=")
        try:
            given[name] = float(value)
        except ValueError as error:
            raise UserError(f"--class-threshold {entry}: a class and a number, such as {model.class_names[0]}=0.3") from error  # fmt: skip
    lowest = DEFAULT_THRESHOLD if args.threshold is None else args.threshold
    threshold = dict.fromkeys(model.class_names, lowest) | given if given else lowest
    thresholds_of(threshold, model.class_names)  # before anything is written
    return threshold


def validation_images(model: Predictor, count: int) -> list[Path]:
    """The first images of a model's validation data, where they are here."""
    folder = OmegaConf.select(model.cfg, "dataset.val_images")
    if not folder or not Path(folder).is_dir():
        return []
    files = (p for p in sorted(Path(folder).rglob("*")) if p.suffix.lower() in IMAGE_ENDINGS)
    return list(islice(files, count))
