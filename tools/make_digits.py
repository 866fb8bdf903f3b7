#!/usr/bin/env python3
"""Make the digits dataset of the quickstart: COCO-format scenes of real scanned digits."""

import argparse
import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    from comer_d2.d2.cli import run_tool
    from comer_d2.d2.data.digits import DigitsSpec, make_digits
except ImportError as error:  # it says what is missing, and what to do
    sys.exit(f"make_digits.py: error: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), "digits")
    spec = DigitsSpec()
    parser.add_argument("--output", default=default, help="folder to make (default: %(default)s)")
    parser.add_argument("--train-images", type=int, default=spec.train_images)
    parser.add_argument("--val-images", type=int, default=spec.val_images)
    parser.add_argument("--seed", type=int, default=spec.seed)
    args = parser.parse_args()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("comer_d2").setLevel(logging.INFO)
    root = make_digits(
        args.output,
        DigitsSpec(train_images=args.train_images, val_images=args.val_images, seed=args.seed),
    )
    print(f"Digits dataset ready in {root}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
