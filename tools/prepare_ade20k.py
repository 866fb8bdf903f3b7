#!/usr/bin/env python3
"""Prepare ADE20K (ADEChallengeData2016.zip, unpacked below DETECTRON2_DATASETS) for training.

Writes annotations_detectron2/; with --panoptic also ade20k_panoptic_{train,val} and their json, for
which the archive annotations_instance.tar has to be unpacked there too.
"""

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    from comer_d2.d2.cli import run_tool
    from comer_d2.d2.data.prepare_ade20k import prepare_panoptic, prepare_semantic
except ImportError as error:  # it says what is missing, and what to do
    sys.exit(f"prepare_ade20k.py: error: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), "ADEChallengeData2016")
    parser.add_argument("--root", default=default, type=Path, help="folder (%(default)s)")
    parser.add_argument("--panoptic", action="store_true", help="panoptic annotations as well")
    args = parser.parse_args()
    prepare_semantic(args.root)
    if args.panoptic:
        prepare_panoptic(args.root)
    print(f"ADE20K is ready in {args.root}")


if __name__ == "__main__":
    sys.exit(run_tool(main))
