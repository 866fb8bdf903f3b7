#!/usr/bin/env python3
"""The ladder of docs/FINETUNING.md: what each part of a recipe gives on a few photos of one's own.

make finetuning ARGS="--task instances --data balloon --vit vit_s14.pth"
make finetuning ARGS="--task semantic --data camvid --vit vit_s14.pth"

Every row is a run of train_net.py on one config of configs/custom; one that is there already is not run again. The
table is printed, and written as table.md beside the runs, with the losses of the first seed as curves.png.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]


COCO_FILES = {
    "train_json": "train.json",
    "train_images": "images",
    "val_json": "val.json",
    "val_images": "images",
}
LABEL_MAPS = {
    "train_images": "train/images",
    "train_masks": "train/masks",
    "val_images": "val/images",
    "val_masks": "val/masks",
    "class_names": "classes.txt",
}


class Task(NamedTuple):
    """What differs between kinds of labels."""

    config: str  # of configs/custom
    metrics: tuple[tuple[str, str], ...]  # task and name, as in evaluation.json
    files: dict[str, str] = (
        COCO_FILES  # key of `dataset` -> where that is in the folder of the data
    )
    comer: str = "model.backbone.bottom_up"  # where the config has its ViT-CoMer
    one_rate: str = (
        "1e-4"  # the rate, for 16 images an update, if the ViT learns as fast as the rest
    )
    image_size: int = 192  # pixels
    iterations: int = 300
    plain: str | None = None  # the config of the same heads on a plain ViT


BOXES, MASKS, LABELS = ("bbox", "AP"), ("segm", "AP"), ("sem_seg", "mIoU")
TASKS = {
    "boxes": Task("faster_rcnn_comer_s_frozen", (BOXES,)),
    "instances": Task("mask_rcnn_comer_s_frozen", (BOXES, MASKS), plain="mask_rcnn_vit_s_frozen"),
    "semantic": Task(
        "upernet_comer_s_semantic", (LABELS,), LABEL_MAPS, "model.backbone", "5e-4", 160, 200
    ),
}


class Row(NamedTuple):
    """A run: a config, whether it starts from the pretrained ViT, and what is changed in the config."""

    config: str
    pretrained: bool
    changes: list[str]


def rows_of(task: Task) -> dict[str, Row]:
    """Name -> row of the task's ladder."""

    def vit(freeze_at: int, dtype: str, to_v: bool, factor: float = 1.0) -> list[str]:
        return [
            f"{task.comer}.vit.freeze_at={freeze_at}",
            f"{task.comer}.vit.frozen_dtype={dtype}",
            f"{task.comer}.use_cti_to_v={to_v}",
            f"optimizer.params.vit_lr_factor={factor}",
        ]

    trained = vit(0, "float32", True)
    one_rate = [*trained, f"optimizer.lr={task.one_rate}"]
    slow = vit(0, "float32", True, factor=0.02)
    read = vit(12, "bfloat16", False)
    changes = {
        "scratch, one rate": one_rate,
        "scratch, the config's rate": trained,
        "pretrained, one rate": one_rate,
        "pretrained, layer decay 0.7": [*one_rate, "optimizer.params.lr_decay_rate=0.7"],
        "pretrained, the config's rate, the ViT at a fiftieth of it": slow,
        "pretrained, the ViT frozen": vit(12, "float32", True),
        "pretrained, the ViT only read": read,
        "that, and the average of weights": [*read, "train.ema.enabled=true"],
    }
    rows = {
        name: Row(task.config, not name.startswith("scratch"), row) for name, row in changes.items()
    }
    if task.plain:
        rows["plain ViT, pretrained, only read"] = Row(
            task.plain, True, ["model.backbone.net.frozen_dtype=bfloat16"]
        )
    return rows


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument(
        "--data",
        required=True,
        type=Path,
        help="boxes and instances: a folder with train.json, val.json and images/; semantic: one with train/ and val/, "
        "each with images/ and masks/, and classes.txt",
    )
    parser.add_argument("--vit", required=True, help="the pretrained ViT-S, a file or timm:<id>")
    parser.add_argument(
        "--output", type=Path, default=Path("output/finetuning"), help="(%(default)s)"
    )
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="(all)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="(0 1)")
    parser.add_argument("--image-size", type=int, help="pixels (192; semantic: 160)")
    parser.add_argument("--iterations", type=int, help="(300; semantic: 200)")
    parser.add_argument(
        "opts", nargs="*", metavar="key=value", help="changes of every run's config"
    )
    args = parser.parse_intermixed_args()
    known = rows_of(TASKS[args.task])
    args.rows = args.rows or list(known)
    if unknown := [row for row in args.rows if row not in known]:
        parser.error(f"--rows: no {unknown[0]!r} among {', '.join(map(repr, known))}")
    return args


def path_of(config: str) -> str:
    """The file of a config."""
    return str(ROOT / "configs" / "custom" / f"{config}.py")


def folder_of(row: str, seed: int) -> str:
    """A name that an override on the command line can hold."""
    return "_".join([*re.findall(r"[A-Za-z0-9.]+", row), str(seed)])


def run(args: argparse.Namespace, row: str, seed: int) -> list[float]:
    """Train and evaluate one row; returns the task's metrics."""
    task = TASKS[args.task]
    output = args.output / args.task / folder_of(row, seed)
    if not (output / "model_final.pth").exists():
        config, pretrained, changes = rows_of(task)[row]
        command = [
            sys.executable,
            str(ROOT / "train_net.py"),
            "--config-file",
            path_of(config),
        ]
        command += [f"dataset.{key}={args.data / name}" for key, name in task.files.items()]
        command += [f"dataset.image_size={args.image_size or task.image_size}"]
        command += [f"train.max_iter={args.iterations or task.iterations}", "train.eval_period=0"]
        command += [f"train.seed={seed}", f"train.output_dir={output}"]
        command += [f"train.init_checkpoint={args.vit}"] if pretrained else []
        subprocess.run([*command, *changes, *args.opts], check=True)
    results = json.loads((output / "evaluation.json").read_text())["results"]
    return [results[kind][name] for kind, name in task.metrics]


def draw_curves(args: argparse.Namespace) -> None:
    """Write the total losses of the rows over the iterations."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in args.rows:
        file = args.output / args.task / folder_of(row, args.seeds[0]) / "metrics.json"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        losses = {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}
        axes.plot(losses.keys(), losses.values(), label=row)
    axes.set(xlabel="iteration", ylabel="total loss")
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(args.output / args.task / "curves.png", dpi=100)


def main() -> None:
    """Run the rows and print their table."""
    args = parse_arguments()
    head = " | ".join(f"seed {seed}" for seed in args.seeds)
    lines = [f"| | {head} |", "|---|" + "---|" * len(args.seeds)]
    for row in args.rows:
        cells = [" / ".join(f"{v:.1f}" for v in run(args, row, seed)) for seed in args.seeds]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    text = "\n".join(lines) + "\n"
    (args.output / args.task / "table.md").write_text(text)
    draw_curves(args)
    print(text)


if __name__ == "__main__":
    main()
