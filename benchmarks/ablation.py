#!/usr/bin/env python3
"""The paper's ladder (its Table 7) on the quickstart's digits: what each part of ViT-CoMer adds to a plain ViT.

    make ablation                                   # twelve runs of minutes each on a CPU
    python3 benchmarks/ablation.py --seeds 0 --iterations 500

Every run is `train_net.py` on a config of configs/quickstart, from scratch. Runs that are there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMER, PLAIN = "mask_rcnn_comer_digits.py", "mask_rcnn_vit_digits.py"
BACKBONE = "model.backbone.bottom_up"
# Name -> config, and which parts are off.
LADDER = {
    "plain ViT, simple feature pyramid": (PLAIN, ()),
    "CNN pyramid and MRFP beside it": (COMER, ("use_cti_to_v", "use_cti_to_c")),
    "+ CTI to V": (COMER, ("use_cti_to_c",)),
    "+ CTI to C: ViT-CoMer": (COMER, ()),
}
METRICS = (("bbox", "AP"), ("segm", "AP"))


def main() -> int:
    """Run the ladder and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=1000, help="(%(default)s)")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "ablation")
    args = parser.parse_args()
    quickstart = [sys.executable, str(ROOT / "tools" / "quickstart.py"), "--data-only"]
    subprocess.run(quickstart, check=True, cwd=ROOT)
    rows = []
    for number, (name, (config, off)) in enumerate(LADDER.items()):
        found = [
            run(args.output / f"{number}_seed{seed}_{args.iterations}", config, off, seed, args.iterations)
            for seed in args.seeds
        ]  # fmt: skip
        cells = [_spread([result[task][metric] for result in found]) for task, metric in METRICS]
        rows.append([name, *cells])
        print("|", " | ".join(rows[-1]), "|", flush=True)
    header = ["", *(("box" if task == "bbox" else "mask") + " AP" for task, _ in METRICS)]
    lines = [header, ["---"] * len(header), *rows]
    print(f"\nMean and deviation of {len(args.seeds)} seeds, {args.iterations} iterations:\n")
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return 0


def run(folder: Path, config: str, off: tuple[str, ...], seed: int, iterations: int) -> dict:
    """Train one rung, or read what it reached; returns task -> metric -> value."""
    done = folder / "model_final.pth"
    if not done.is_file():
        overrides = [
            f"train.output_dir={folder}",
            f"train.seed={seed}",
            f"train.max_iter={iterations}",
            "train.report=False",
            *(f"{BACKBONE}.{part}=False" for part in off),
        ]
        config = str(ROOT / "configs" / "quickstart" / config)
        command = [sys.executable, str(ROOT / "train_net.py"), "--config-file", config, "--resume"]
        log = folder.parent / f"{folder.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as file:
            code = subprocess.run([*command, *overrides], stdout=file, stderr=file, cwd=ROOT)
        if code.returncode:
            sys.exit(f"ablation: {folder.name} ended with {code.returncode}: see {log}")
    return json.loads((folder / "evaluation.json").read_text())["results"]


def _spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"


if __name__ == "__main__":
    sys.exit(main())
