#!/usr/bin/env python3
"""Watch a Mask2Former learn on this CPU: make a small panoptic dataset, train, evaluate, draw.

The dataset is the first quickstart's scanned digits, more of them in a scene, with the page behind them as stuff. One
model does all three tasks; with --task, one is trained for that task alone. Interrupted, the same command goes on where
it stopped; finished, it trains anew on the dataset that is there.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

# Also sets what must be set before torch starts its threads, and finds this project.
from quickstart import ROOT, finish_folder, say, train

try:
    from comer_d2.d2.data.custom import resolve_dataset
    from comer_d2.d2.data.digits import DigitsSpec, make_digits
    from comer_d2.d2.data.panoptic_from_instances import panoptic_from_instances
    from comer_d2.d2.engine.config import load_config
    from comer_d2.d2.predictor import Predictor
    from comer_d2.d2.visualization.instances import picture_sheet, save_picture
    from comer_d2.d2.visualization.segments import compare_segmentation
except ImportError as error:  # it says what is missing, and what to do
    sys.exit(f"quickstart_seg.py: error: {error}")

SHORT_ITERATIONS = 1000
METRICS = {
    "panoptic": ("panoptic_seg", "PQ", "PQ"),
    "semantic": ("sem_seg", "mIoU", "mIoU"),
    "instance": ("segm", "AP", "mask AP"),
}
# The task's metric that shows that everything works, below what was measured (docs/SEGMENTATION.md).
LEAST = {"panoptic": 40.0, "semantic": 50.0, "instance": 15.0}
LEAST_SHORT = {"panoptic": 15.0, "semantic": 20.0, "instance": 3.0}
# Many digits, as small as they can be read: queries learn from one object each.
DIGIT_SIZE, MAX_DIGITS = (24, 40), 9


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--task", choices=METRICS, default="panoptic", help="what is trained (%(default)s)"
    )
    parser.add_argument("--short", action="store_true", help="about six minutes, worse pictures")
    parser.add_argument("--fresh", action="store_true", help="forget an interrupted run")
    parser.add_argument("--data-only", action="store_true", help="make the dataset and stop")
    parser.add_argument("--output", type=Path, help="folder (output/quickstart-seg/<task>)")
    parser.add_argument("--least", type=float, help="fail below this PQ, mIoU or mask AP")
    parser.add_argument("--train-images", type=int, default=1000, help="scenes (%(default)s)")
    parser.add_argument("--val-images", type=int, default=150, help="scenes (%(default)s)")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    return parser.parse_intermixed_args()


def main() -> int:
    args = parse_arguments()
    start = time.monotonic()
    datasets = Path(os.getenv("DETECTRON2_DATASETS") or ROOT / "datasets").expanduser().resolve()
    os.environ["DETECTRON2_DATASETS"] = str(datasets)
    say(f"1/3  dataset: {args.train_images} + {args.val_images} scenes of scanned digits")
    print(f"     {make_data(datasets / 'digits-panoptic', args.train_images, args.val_images)}")
    if args.data_only:
        return 0

    name = args.task + ("-short" if args.short else "")
    output = (args.output or ROOT / "output" / "quickstart-seg" / name).resolve()
    suffix = "" if args.task == "panoptic" else f"_{args.task}"
    config = ROOT / "configs" / "quickstart" / f"mask2former_comer_digits{suffix}.py"
    what = f"ViT-CoMer, Mask2Former, {args.task}"
    overrides, code = train(config, args, output, SHORT_ITERATIONS, what)
    if code:
        return code

    results = json.loads((output / "evaluation.json").read_text())["results"]
    figures = {
        title: float("nan") if results[group][metric] is None else results[group][metric]
        for group, metric, title in METRICS.values()
        if group in results
    }
    say("3/3  pictures")
    sheet = draw(config, overrides, output, args.task, describe(figures))
    minutes = (time.monotonic() - start) / 60
    finish_folder(output, {**figures, "minutes": minutes, "pictures": str(sheet)})
    say(f"{describe(figures)}   in {minutes:.1f} minutes")
    print(f"pictures:    {sheet}\ncheckpoint:  {output / 'model_final.pth'}")
    metric = METRICS[args.task][2]
    least = args.least
    if least is None:
        least = (LEAST_SHORT if args.short else LEAST)[args.task]
    if least > 0 and not figures[metric] >= least:  # NaN fails too
        print(
            f"quickstart_seg: error: {metric} {figures[metric]:.1f} is below the {least:g} that this "
            "run reaches when everything works",
            file=sys.stderr,
        )
        return 1
    return 0


def make_data(digits: Path, train_images: int, val_images: int) -> Path:
    """The digits, and beside them their panoptic annotations; complete ones are kept."""
    spec = DigitsSpec(
        train_images=train_images,
        val_images=val_images,
        digit_size=DIGIT_SIZE,
        max_digits=MAX_DIGITS,
    )
    make_digits(digits, spec)
    for split in ("train", "val"):
        # The json comes last, and making digits anew removes it.
        if not (digits / f"panoptic_{split}.json").is_file():
            panoptic_from_instances(
                digits / f"{split}.json", digits / f"panoptic_{split}", background="page"
            )
    return digits


def describe(figures: dict[str, float]) -> str:
    return ", ".join(f"{title} {value:.1f}" for title, value in figures.items())


def draw(config: Path, overrides: list[str], output: Path, task: str, figures: str) -> Path:
    """Write the picture sheet of the trained model; returns its path."""
    cfg = load_config(str(config), overrides)
    resolve_dataset(cfg)
    predictor = Predictor(cfg, output / "model_final.pth")
    pairs = compare_segmentation(
        predictor,
        cfg.dataloader.test.dataset.names,
        task,
        count=12,
        stuff_classes=list(cfg.dataset.stuff_classes),
    )
    sheet = picture_sheet(
        pairs,
        title=f"ViT-CoMer, Mask2Former, {task}: {figures}",
        subtitle=f"the first {len(pairs)} validation scenes, made of scans that training never "
        f"saw; {cfg.train.max_iter} iterations from scratch on a CPU",
    )
    return save_picture(sheet, output / "predictions.png")


if __name__ == "__main__":
    sys.exit(main())
