#!/usr/bin/env python3
"""Watch a model learn on this CPU: make a small dataset, train, evaluate, draw.

The dataset is scanned digits in COCO format, the training is train_net.py with a config of configs/quickstart, the
pictures are validation scenes, ground truth beside prediction. --task detection trains a Mask R-CNN; the others train
a Mask2Former on more digits in a scene, with the page behind them as stuff: "panoptic" for all three tasks at once.
Interrupted, the same command goes on where it stopped; finished, it trains anew on the dataset that is there.
"""

import argparse
import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Before torch starts its threads. Waiting ones that spin make small CPU runs several times slower; and
# tensors are so small here that a second thread waits more than it works.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs" / "quickstart"
sys.path.insert(0, str(ROOT))

# Of torch and Detectron2 about each other; nothing a user could act on.
warnings.filterwarnings("ignore", module=r"(torch|detectron2)\b")
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Task:
    """What is trained, and what shows that it works.

    Args:
        model: its name in the headline.
        config: below configs/quickstart.
        digits: how the scenes differ from DigitsSpec's.
        metrics: title -> where evaluation.json has it; the first one has to reach `least`.
        least: below what was measured (docs/DATASETS.md, docs/SEGMENTATION.md).
        short_iterations: of --short.
        least_short: after them.
    """

    model: str
    config: str
    digits: dict[str, Any]
    metrics: dict[str, tuple[str, str]]
    least: float
    short_iterations: int
    least_short: float

    @property
    def dataset(self) -> str:
        """The folder's name."""
        return "digits-panoptic" if self.digits else "digits"


BOXES = {"box AP": ("bbox", "AP"), "mask AP": ("segm", "AP")}
SEGMENTS = {
    "PQ": ("panoptic_seg", "PQ"),
    "mask AP": ("segm", "AP"),
    "mIoU": ("sem_seg", "mIoU"),
}
# Many digits, as small as they can be read: queries learn from one object each.
CROWDED = {"digit_size": (24, 40), "max_digits": 9}
MASK2FORMER = "ViT-CoMer, Mask2Former"
TASKS = {
    "detection": Task(
        "ViT-CoMer + FPN, Mask R-CNN", "mask_rcnn_comer_digits.py", {}, BOXES, 60.0, 500, 15.0
    ),
    "detection-vit": Task(
        "plain ViT + simple feature pyramid, Mask R-CNN",
        "mask_rcnn_vit_digits.py",
        {},
        BOXES,
        45.0,
        500,
        10.0,
    ),
    "panoptic": Task(
        MASK2FORMER, "mask2former_comer_digits.py", CROWDED, SEGMENTS, 40.0, 1000, 15.0
    ),
    "semantic": Task(
        MASK2FORMER,
        "mask2former_comer_digits_semantic.py",
        CROWDED,
        {"mIoU": SEGMENTS["mIoU"]},
        50.0,
        1000,
        20.0,
    ),
    "instance": Task(
        MASK2FORMER,
        "mask2former_comer_digits_instance.py",
        CROWDED,
        {"mask AP": SEGMENTS["mask AP"]},
        15.0,
        1000,
        3.0,
    ),
}

# What `train_net.py --eval-only` leaves in the folder that the config names.
OF_EVALUATION = {"evaluation.json", "log.txt", "inference", "report"}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--task", choices=TASKS, default="detection", help="what is trained (%(default)s)"
    )
    parser.add_argument("--short", action="store_true", help="half as long, worse pictures")
    parser.add_argument("--fresh", action="store_true", help="forget an interrupted run")
    parser.add_argument("--data-only", action="store_true", help="make the dataset and stop")
    parser.add_argument("--output", type=Path, help="folder (output/quickstart/<task>)")
    parser.add_argument("--least", type=float, help="fail below this AP, PQ or mIoU")
    parser.add_argument("--train-images", type=int, default=1000, help="scenes (%(default)s)")
    parser.add_argument("--val-images", type=int, default=150, help="scenes (%(default)s)")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    return parser.parse_intermixed_args()


def main() -> int:
    args = parse_arguments()
    task = TASKS[args.task]
    logging.basicConfig(format="%(message)s")
    logging.getLogger("comer_d2").setLevel(logging.INFO)
    start = time.monotonic()
    datasets = Path(os.getenv("DETECTRON2_DATASETS") or ROOT / "datasets").expanduser().resolve()
    os.environ["DETECTRON2_DATASETS"] = str(datasets)

    say(f"1/3  dataset: {args.train_images} + {args.val_images} scenes of scanned digits")
    data = make_data(datasets / task.dataset, task, args.train_images, args.val_images)
    print(f"     {data}")
    if args.data_only:
        return 0

    name = args.task + ("-short" if args.short else "")
    output = (args.output or ROOT / "output" / "quickstart" / name).resolve()
    overrides, code = train(task, args, output)
    if code:
        return code

    results = json.loads((output / "evaluation.json").read_text())["results"]
    found = {title: results[group][metric] for title, (group, metric) in task.metrics.items()}
    figures = {title: float("nan") if v is None else v for title, v in found.items()}
    described = ", ".join(f"{title} {value:.1f}" for title, value in figures.items())
    say("3/3  pictures")
    sheet = draw(task, overrides, output, described)
    minutes = (time.monotonic() - start) / 60
    finish_folder(output, {**figures, "minutes": minutes, "pictures": str(sheet)})

    say(f"{described}   in {minutes:.1f} minutes")
    print(f"pictures:    {sheet}\nreport:      {output / 'report' / 'index.html'}")
    print(f"checkpoint:  {output / 'model_final.pth'}")
    print(f"one image:   python3 -m comer_d2 predict {output} {data / 'val' / '00001.png'}")
    least = args.least
    if least is None:
        least = task.least_short if args.short else task.least
    title, value = next(iter(figures.items()))
    if least > 0 and not value >= least:  # NaN fails too
        print(
            f"quickstart: error: {title} {value:.1f} is below the {least:g} that this run reaches "
            "when everything works",
            file=sys.stderr,
        )
        return 1
    return 0


def make_data(folder: Path, task: Task, train_images: int, val_images: int) -> Path:
    """The digits and, for segmentation, their panoptic annotations; complete ones are kept."""
    from comer_d2.d2.data.digits import DigitsSpec, make_digits
    from comer_d2.d2.data.panoptic_from_instances import panoptic_from_instances

    make_digits(folder, DigitsSpec(train_images=train_images, val_images=val_images, **task.digits))
    for split in ("train", "val") if task.digits else ():
        # The json comes last, and making digits anew removes it.
        if not (folder / f"panoptic_{split}.json").is_file():
            panoptic_from_instances(
                folder / f"{split}.json", folder / f"panoptic_{split}", background="page"
            )
    return folder


def say(line: str) -> None:
    print(f"\n== {line}", flush=True)


def train(task: Task, args: argparse.Namespace, output: Path) -> tuple[list[str], int]:
    """Run train_net.py, or go on with an interrupted run of the same settings.

    Returns:
        The config's overrides, and the exit code.
    """
    short = [f"train.max_iter={task.short_iterations}"] if args.short else []
    overrides = [*short, *args.opts, f"train.output_dir={output}"]
    settings = {
        "config": task.config,
        "overrides": overrides,
        "scenes": [args.train_images, args.val_images],
    }
    prepare_folder(output, settings, fresh=args.fresh)
    say(f"2/3  training {task.model}, from scratch on the CPU")
    config = str(CONFIGS / task.config)
    command = [str(ROOT / "train_net.py"), "--resume", "--config-file", config, *overrides]
    print(f"     python3 {shlex.join(command)}\n", flush=True)
    code = run_forwarding_signals([sys.executable, *command])
    if code:
        print(f"\nquickstart: training stopped (exit code {code})", file=sys.stderr)
    if code > 128:
        print("quickstart: the same command goes on from there", file=sys.stderr)
    return overrides, code


def prepare_folder(output: Path, settings: dict, *, fresh: bool) -> None:
    """Keep a folder that holds an interrupted run with these settings; empty any other."""
    record = output / "quickstart.json"
    if output.exists():
        others = {path.name for path in output.iterdir()} - OF_EVALUATION
        if others and not record.is_file():
            sys.exit(
                f"quickstart: error: {output} holds something else than a quickstart; "
                "remove it or choose another --output"
            )
        if not fresh and read_json(record) == settings:
            return
        shutil.rmtree(output)
    output.mkdir(parents=True)
    write_json(record, settings)


def finish_folder(output: Path, summary: dict) -> None:
    """Record the result, so that the next quickstart trains anew."""
    record = output / "quickstart.json"
    write_json(record, {**(read_json(record) or {}), "result": summary})


def read_json(path: Path) -> dict | None:
    """What is in a file, None if it is missing or torn."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def write_json(path: Path, value: dict) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value, indent=1) + "\n")
    part.replace(path)


def run_forwarding_signals(command: list[str]) -> int:
    """Run a command in the repository; Ctrl-C and SIGTERM reach it exactly once.

    It gets a session of its own, for otherwise a terminal's Ctrl-C would come twice: once from the
    terminal, once from here.

    Returns:
        Its exit code, 128 + the signal's number if a signal ended it.
    """
    process = subprocess.Popen(command, cwd=ROOT, start_new_session=True)
    previous = {
        number: signal.signal(number, lambda received, _: process.send_signal(received))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        code = process.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code


def draw(task: Task, overrides: list[str], output: Path, figures: str) -> Path:
    """Write the picture sheet of the trained model; returns its path."""
    from comer_d2.d2.comparison import compare
    from comer_d2.d2.data.custom import resolve_dataset
    from comer_d2.d2.engine.config import load_config
    from comer_d2.d2.predictor import Predictor
    from comer_d2.d2.visualization.sheet import picture_sheet, save_picture

    cfg = load_config(str(CONFIGS / task.config), overrides)
    resolve_dataset(cfg)
    predictor = Predictor(cfg, output / "model_final.pth")
    pairs = compare(predictor, cfg.dataloader.test.dataset.names, count=12)
    sheet = picture_sheet(
        pairs,
        title=f"{task.model}: {figures}",
        subtitle=f"the first {len(pairs)} validation scenes, made of scans that training never "
        f"saw; {cfg.train.max_iter} iterations from scratch on a CPU; score at least 50%",
    )
    return save_picture(sheet, output / "predictions.png")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ImportError as error:  # it says what is missing, and what to do
        sys.exit(f"quickstart: error: {error}")
