#!/usr/bin/env python3
"""The ladders of docs/FINETUNING.md: what each part of a recipe, or of ViT-CoMer, gives on a few photos of one's own.

make finetuning ARGS="--task instances --data balloon --vit vit_s14.pth"
make finetuning ARGS="--task semantic --data camvid --vit vit_s14.pth"
make ablation ARGS="--task boxes --data bccd --vit vit_s14.pth"          # the paper's ablation

Every row is a run of train_net.py on one config of configs/custom; one that is done is not run again, one that was
cut off goes on, if data, ViT and changes are still the same. The table is printed, and written as table.md beside
the runs, with the losses of the first seed as curves.png.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
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


class Row(NamedTuple):
    """A run: a config, whether it starts from the pretrained ViT, and what is changed in the config."""

    config: str
    pretrained: bool
    changes: list[str]


class Task(NamedTuple):
    """A ladder: its rows, and what differs between kinds of labels."""

    config: str  # of configs/custom
    plain: str  # the config of the same heads on a plain ViT
    metrics: tuple[tuple[str, str], ...]  # task and name, as in evaluation.json
    files: dict[str, str] = (
        COCO_FILES  # key of `dataset` -> where that is in the folder of the data
    )
    comer: str = "model.backbone.bottom_up"  # where the config has its ViT-CoMer
    one_rate: str = "1e-4"  # if the ViT learns as fast as the rest; whatever the batch
    image_size: int = 192  # pixels
    iterations: int = 300


def recipe_rows(task: Task) -> dict[str, Row]:
    """What each part of the recipe gives, with a pretrained ViT and without."""

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
    plain = "model.backbone.net"
    rows["plain ViT, scratch, the config's rate"] = Row(
        task.plain, False, [f"{plain}.freeze_at=0", "optimizer.params.vit_lr_factor=1"]
    )
    rows["plain ViT, pretrained, only read"] = Row(
        task.plain, True, [f"{plain}.frozen_dtype=bfloat16"]
    )
    return rows


def paper_rows(task: Task) -> dict[str, Row]:
    """The paper's ablation: a plain ViT, pretrained and frozen, and each part of ViT-CoMer added to it."""
    parts_that_are_off = {
        "+ CNN pyramid and MRFP": ("use_cti_to_v", "use_cti_to_c"),
        "+ CTI to V": ("use_cti_to_c",),
        "+ CTI to C: ViT-CoMer": (),
    }
    rows = {"plain ViT, simple feature pyramid": Row(task.plain, True, [])}
    for name, parts in parts_that_are_off.items():
        off = [f"{task.comer}.{part}=False" for part in parts]
        rows[name] = Row(task.config, True, off)
    return rows


BOXES, MASKS, LABELS = ("bbox", "AP"), ("segm", "AP"), ("sem_seg", "mIoU")
TASKS = {
    "boxes": Task("faster_rcnn_comer_s_frozen", "faster_rcnn_vit_s_frozen", (BOXES,)),
    "instances": Task("mask_rcnn_comer_s_frozen", "mask_rcnn_vit_s_frozen", (BOXES, MASKS)),
    "semantic": Task(
        "upernet_comer_s_frozen_semantic",
        "upernet_vit_s_frozen_semantic",
        (LABELS,),
        files=LABEL_MAPS,
        comer="model.backbone",
        one_rate="5e-4",
    ),
}
# What a ladder's rows are, and its seeds.
LADDERS = {"recipe": (recipe_rows, [0, 1]), "paper": (paper_rows, [0, 1, 2])}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ladder", default="recipe", choices=LADDERS, help="(%(default)s)")
    parser.add_argument("--task", required=True, choices=TASKS)
    parser.add_argument(
        "--data",
        required=True,
        type=Path,
        help="a folder with train.json, val.json and images/; semantic: one with train/ and val/, each with images/ "
        "and masks/, and classes.txt",
    )
    parser.add_argument("--vit", help="the pretrained ViT-S, a file or timm:<id>")
    parser.add_argument(
        "--output", type=Path, default=Path("output/finetuning"), help="(%(default)s)"
    )
    parser.add_argument("--rows", nargs="+", metavar="ROW", help="(all)")
    parser.add_argument("--seeds", nargs="+", type=int, help="(0 1; paper: 0 1 2)")
    parser.add_argument("--image-size", type=int, help="pixels (192)")
    parser.add_argument("--iterations", type=int, help="(300)")
    parser.add_argument(
        "opts", nargs="*", metavar="key=value", help="changes of every run's config"
    )
    args = parser.parse_intermixed_args()
    task = TASKS[args.task]
    rows_of, seeds = LADDERS[args.ladder]
    known = rows_of(task)
    if unknown := [row for row in args.rows or () if row not in known]:
        parser.error(f"--rows: no {unknown[0]!r} among {', '.join(map(repr, known))}")
    args.rows = {row: known[row] for row in args.rows or known}
    pretrained = [name for name, row in args.rows.items() if row.pretrained]
    if pretrained and not args.vit:
        parser.error(f"--vit: {pretrained[0]!r} starts from a pretrained ViT-S")
    args.seeds = args.seeds or seeds
    args.image_size = args.image_size or task.image_size
    args.iterations = args.iterations or task.iterations
    # Runs of another length or size are other runs.
    args.output /= f"{args.task}_{args.ladder}_{args.image_size}px_{args.iterations}"
    return args


def path_of(config: str) -> str:
    """The file of a config."""
    return str(ROOT / "configs" / "custom" / f"{config}.py")


def folder_of(row: str, seed: int) -> str:
    """A name that an override on the command line can hold."""
    return "_".join([*re.findall(r"[A-Za-z0-9.]+", row), str(seed)])


def claim_folder(args: argparse.Namespace) -> None:
    """Write down what the runs of the folder are made from, so that those of something else are not taken for them."""
    file = args.output / "ladder.json"
    local = args.vit and Path(args.vit).exists()
    own = {
        "--data": str(args.data.resolve()),
        "--vit": str(Path(args.vit).resolve()) if local else args.vit,
        "changes": args.opts,
    }
    before: dict[str, object] = {}
    if any(args.output.glob("*/config.yaml")):  # a run that began
        before = dict.fromkeys(own, "something that was not written down")
        if file.exists():
            before = json.loads(file.read_text(encoding="utf-8"))
    for key, value in own.items():
        known = before.get(key)
        if None not in (known, value) and known != value:  # no --vit: of rows from scratch
            sys.exit(
                f"finetuning.py: error: {args.output} holds runs of another ladder: {key} {known}, now {value}; "
                "give another --output"
            )
    args.output.mkdir(parents=True, exist_ok=True)
    own |= {key: value for key, value in before.items() if value is not None}
    file.write_text(json.dumps(own, indent=1), encoding="utf-8")


def is_done(evaluation: Path, iterations: int) -> bool:
    """Whether an evaluation is that of the end; `train.eval_period` as a change makes earlier ones."""
    if not evaluation.exists():
        return False
    return json.loads(evaluation.read_text(encoding="utf-8"))["iteration"] + 1 >= iterations


def run(args: argparse.Namespace, name: str, seed: int) -> list[float]:
    """Train and evaluate one row; returns the task's metrics."""
    task = TASKS[args.task]
    output = args.output / folder_of(name, seed)
    evaluation = output / "evaluation.json"
    if not is_done(evaluation, args.iterations):
        config, pretrained, changes = args.rows[name]
        command = [sys.executable, str(ROOT / "train_net.py"), "--resume"]
        command += ["--config-file", path_of(config)]
        command += [f"dataset.{key}={args.data / file}" for key, file in task.files.items()]
        command += [f"dataset.image_size={args.image_size}"]
        command += [f"train.max_iter={args.iterations}", "train.eval_period=0"]
        command += [f"train.seed={seed}", f"train.output_dir={output}"]
        command += [f"train.init_checkpoint={args.vit}"] if pretrained else []
        status = subprocess.run([*command, *changes, *args.opts]).returncode
        if status:
            sys.exit(f"finetuning.py: {name!r}, seed {seed}: train_net.py ended with {status}")
    results = json.loads(evaluation.read_text())["results"]
    return [results[kind][metric] for kind, metric in task.metrics]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation of seeds."""
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


def draw_curves(args: argparse.Namespace) -> None:
    """Write the total losses of the rows over the iterations."""
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in args.rows:
        file = args.output / folder_of(row, args.seeds[0]) / "metrics.json"
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        losses = {line["iteration"]: line["total_loss"] for line in lines if "total_loss" in line}
        axes.plot(losses.keys(), losses.values(), label=row)
    axes.set(xlabel="iteration", ylabel="total loss")
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(args.output / "curves.png", dpi=100)


def main() -> None:
    """Run the rows and print their table."""
    args = parse_arguments()
    claim_folder(args)
    head = [f"seed {seed}" for seed in args.seeds]
    head += ["mean ± deviation"] if len(args.seeds) > 1 else []
    lines = [f"| | {' | '.join(head)} |", "|---|" + "---|" * len(head)]
    for row in args.rows:
        found = [run(args, row, seed) for seed in args.seeds]
        cells = [" / ".join(f"{value:.1f}" for value in values) for values in found]
        if len(found) > 1:
            cells.append(" / ".join(spread(values) for values in zip(*found, strict=True)))
        lines.append(f"| {row} | {' | '.join(cells)} |")
    text = "\n".join(lines) + "\n"
    (args.output / "table.md").write_text(text)
    draw_curves(args)
    print(text)


if __name__ == "__main__":
    main()
