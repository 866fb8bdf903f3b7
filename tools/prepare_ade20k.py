#!/usr/bin/env python3
"""Prepare ADE20K (ADEChallengeData2016.zip, unpacked below DETECTRON2_DATASETS) for training.

Writes annotations_detectron2/; with --panoptic also ade20k_panoptic_{train,val} and their json, for
which the archive annotations_instance.tar has to be unpacked there too.
"""

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Of torch and Detectron2 about each other; nothing a user could act on.
warnings.filterwarnings("ignore", module=r"(torch|detectron2)\b")
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

try:
    from comer_d2.d2.data.prepare_ade20k import prepare_panoptic, prepare_semantic
    from comer_d2.d2.errors import UserError
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
    try:
        main()
    except UserError as error:
        sys.exit(f"prepare_ade20k.py: error: {error}")
