#!/usr/bin/env python3
"""The ladder of docs/FINETUNING.md: what each part of the recipe gives on label maps of one's own.

make finetuning ARGS="--data camvid --vit dinov2_vits14.pth"

Every row is a run of train_net.py on configs/custom/upernet_comer_s_semantic.py; one that is there already is not run
again. The table is printed, and written as table.md beside the runs.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / "configs/custom/upernet_comer_s_semantic.py"
ONE_RATE = ["optimizer.lr=5e-4", "optimizer.params.vit_lr_factor=1.0"]
# Row -> whether it starts from the pretrained ViT, and what it changes in the config.
ROWS = {
    "scratch": (False, ONE_RATE),
    "scratch, the config's rates": (False, []),
    "pretrained, one rate": (True, ONE_RATE),
    "pretrained, layer decay 0.7": (True, [*ONE_RATE, "optimizer.params.lr_decay_rate=0.7"]),
    "pretrained, the ViT frozen": (True, ["model.backbone.vit.freeze_at=12"]),
    "pretrained, no CTI to V": (True, ["model.backbone.use_cti_to_v=false"]),
    "pretrained (the config)": (True, []),
    "pretrained, average of weights": (True, ["train.ema.enabled=true"]),
}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data",
        required=True,
        type=Path,
        help="a folder with train/ and val/, each with images/ and masks/, and classes.txt",
    )
    parser.add_argument("--vit", required=True, help="the pretrained ViT-S, a file or timm:<id>")
    parser.add_argument(
        "--output", type=Path, default=Path("output/finetuning"), help="(%(default)s)"
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1], help="(0 1)")
    parser.add_argument("--image-size", type=int, default=160, help="pixels (%(default)s)")
    parser.add_argument("--iterations", type=int, default=200, help="(%(default)s)")
    parser.add_argument(
        "opts", nargs="*", metavar="key=value", help="changes of every run's config"
    )
    return parser.parse_intermixed_args()


def folder_of(row: str, seed: int) -> str:
    """A name that an override on the command line can hold."""
    return "_".join([*re.findall(r"[A-Za-z0-9.]+", row), str(seed)])


def run(args: argparse.Namespace, row: str, seed: int) -> float:
    """Train and evaluate one row; returns its mIoU."""
    output = args.output / folder_of(row, seed)
    if not (output / "model_final.pth").exists():
        pretrained, changes = ROWS[row]
        command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", str(CONFIG)]
        for split in ("train", "val"):
            command += [
                f"dataset.{split}_{kind}={args.data / split / kind}" for kind in ("images", "masks")
            ]
        command += [f"dataset.class_names={args.data / 'classes.txt'}"]
        command += [f"dataset.image_size={args.image_size}", f"train.max_iter={args.iterations}"]
        command += ["train.eval_period=0", f"train.seed={seed}", f"train.output_dir={output}"]
        command += [f"train.init_checkpoint={args.vit}"] if pretrained else []
        subprocess.run([*command, *changes, *args.opts], check=True)
    return json.loads((output / "evaluation.json").read_text())["results"]["sem_seg"]["mIoU"]


def main() -> None:
    """Run the rows and print their table."""
    args = parse_arguments()
    head = " | ".join(f"seed {seed}" for seed in args.seeds)
    lines = [f"| | {head} |", "|---|" + "---|" * len(args.seeds)]
    for row in args.rows:
        values = [run(args, row, seed) for seed in args.seeds]
        lines.append(f"| {row} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
    text = "\n".join(lines) + "\n"
    (args.output / "table.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
