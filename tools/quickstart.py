#!/usr/bin/env python3
"""Watch a detector learn on this CPU: make a small dataset, train, evaluate, draw.

The dataset is scanned digits in COCO format (tools/make_digits.py), the training is train_net.py with a config of
configs/quickstart, the pictures are validation scenes, ground truth beside prediction. Interrupted, the same command
goes on where it stopped; finished, it trains anew on the dataset that is there.
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
from pathlib import Path

# Before torch starts its threads. Waiting ones that spin make small CPU runs several times slower; and
# tensors are so small here that a second thread waits more than it works.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

# Of torch and Detectron2 about each other; nothing a user could act on.
warnings.filterwarnings("ignore", module=r"(torch|detectron2)\b")
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

NAMES = {"comer": "ViT-CoMer", "vit": "plain ViT"}
SHORT_ITERATIONS = 500
# Box AP that shows that everything works, below what was measured (docs/DATASETS.md).
LEAST_AP = {"comer": 60.0, "vit": 45.0}
LEAST_AP_SHORT = {"comer": 15.0, "vit": 10.0}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", choices=NAMES, default="comer", help="the detector's backbone (%(default)s)"
    )
    parser.add_argument("--short", action="store_true", help="about three minutes, worse pictures")
    parser.add_argument("--fresh", action="store_true", help="forget an interrupted run")
    parser.add_argument("--output", type=Path, help="folder (output/quickstart/<model>)")
    parser.add_argument("--least-ap", type=float, help="fail below this box AP")
    parser.add_argument("--train-images", type=int, default=1000, help="scenes (%(default)s)")
    parser.add_argument("--val-images", type=int, default=150, help="scenes (%(default)s)")
    parser.add_argument("opts", nargs="*", metavar="key=value", help="overrides of the config")
    return parser.parse_intermixed_args()


def main() -> int:
    args = parse_arguments()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("comer_d2").setLevel(logging.INFO)
    start = time.monotonic()
    name = args.model + ("-short" if args.short else "")
    output = (args.output or ROOT / "output" / "quickstart" / name).resolve()
    datasets = Path(os.getenv("DETECTRON2_DATASETS") or ROOT / "datasets").expanduser().resolve()
    os.environ["DETECTRON2_DATASETS"] = str(datasets)

    from comer_d2.d2.data.digits import DigitsSpec, make_digits

    say(f"1/3  dataset: {args.train_images} + {args.val_images} scenes of scanned digits")
    digits = make_digits(
        datasets / "digits",
        DigitsSpec(train_images=args.train_images, val_images=args.val_images),
    )
    print(f"     {digits}")

    config = ROOT / "configs" / "quickstart" / f"mask_rcnn_{args.model}_digits.py"
    what = f"{NAMES[args.model]} + FPN, Mask R-CNN"
    overrides, code = train(config, args, output, SHORT_ITERATIONS, what)
    if code:
        return code

    results = json.loads((output / "evaluation.json").read_text())["results"]
    box, mask = results["bbox"]["AP"], results["segm"]["AP"]
    say("3/3  pictures")
    sheet = draw(config, overrides, output, f"{NAMES[args.model]}, Mask R-CNN", box, mask)
    minutes = (time.monotonic() - start) / 60
    summary = {"box_ap": box, "mask_ap": mask, "minutes": minutes, "pictures": str(sheet)}
    finish_folder(output, summary)

    say(f"box AP {box:.1f}   mask AP {mask:.1f}   in {minutes:.1f} minutes")
    checkpoint = output / "model_final.pth"
    print(f"pictures:    {sheet}\ncheckpoint:  {checkpoint}")
    print(
        f"one image:   python3 tools/predict.py --config-file {config.relative_to(ROOT)} "
        f"--checkpoint {checkpoint} {digits / 'val' / '00001.png'}"
    )
    least = args.least_ap
    if least is None:
        least = (LEAST_AP_SHORT if args.short else LEAST_AP)[args.model]
    if least > 0 and not box >= least:  # NaN fails too
        print(
            f"quickstart: error: box AP {box:.1f} is below the {least:g} that this run reaches "
            "when everything works",
            file=sys.stderr,
        )
        return 1
    return 0


def say(line: str) -> None:
    print(f"\n== {line}", flush=True)


def train(
    config: Path, args: argparse.Namespace, output: Path, short_iterations: int, what: str
) -> tuple[list[str], int]:
    """Run train_net.py, or go on with an interrupted run of the same settings.

    Returns:
        The config's overrides, and the exit code.
    """
    short = [f"train.max_iter={short_iterations}"] if args.short else []
    overrides = [*short, *args.opts, f"train.output_dir={output}"]
    settings = {
        "config": config.name,
        "overrides": overrides,
        "scenes": [args.train_images, args.val_images],
    }
    prepare_folder(output, settings, fresh=args.fresh)
    say(f"2/3  training {what}, from scratch on the CPU")
    command = [str(ROOT / "train_net.py"), "--resume", "--config-file", str(config), *overrides]
    print(f"     python3 {shlex.join(command)}\n", flush=True)
    code = run_forwarding_signals([sys.executable, *command])
    program = Path(sys.argv[0]).stem
    if code:
        print(f"\n{program}: training stopped (exit code {code})", file=sys.stderr)
    if code > 128:
        print(f"{program}: the same command goes on from there", file=sys.stderr)
    return overrides, code


def prepare_folder(output: Path, settings: dict, *, fresh: bool) -> None:
    """Keep a folder that holds an interrupted run with these settings; empty any other."""
    record = output / "quickstart.json"
    if output.exists():
        if any(output.iterdir()) and not record.is_file():
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


def draw(
    config: Path, overrides: list[str], output: Path, model: str, box: float, mask: float
) -> Path:
    """Write the picture sheet of the trained model; returns its path."""
    from comer_d2.d2.data.custom import resolve_dataset
    from comer_d2.d2.engine.config import load_config
    from comer_d2.d2.predictor import Predictor, compare_with_ground_truth
    from comer_d2.d2.visualization.instances import picture_sheet, save_picture

    cfg = load_config(str(config), overrides)
    resolve_dataset(cfg)
    predictor = Predictor(cfg, output / "model_final.pth")
    pairs = compare_with_ground_truth(predictor, cfg.dataloader.test.dataset.names, count=12)
    sheet = picture_sheet(
        pairs,
        title=f"{model}: box AP {box:.1f}, mask AP {mask:.1f}",
        subtitle=f"the first {len(pairs)} validation scenes, made of scans that training never "
        f"saw; {cfg.train.max_iter} iterations from scratch on a CPU; score at least 50%",
    )
    return save_picture(sheet, output / "predictions.png")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ImportError as error:  # it says what is missing, and what to do
        sys.exit(f"quickstart: error: {error}")
