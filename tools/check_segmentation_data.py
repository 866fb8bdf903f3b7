#!/usr/bin/env python3
"""Read every image and label of a config's data once, and list the files that are wrong.

python3 tools/check_segmentation_data.py --config-file configs/COCOStuff/semantic/mask2former_comer_l.py
"""

import argparse
import logging
import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Of torch and Detectron2 about each other; nothing a user could act on.
warnings.filterwarnings("ignore", module=r"(torch|detectron2)\b")
logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)

try:
    from comer_d2.d2.data.check_labels import find_wrong_files
    from comer_d2.d2.data.custom import resolve_dataset
    from comer_d2.d2.engine.checks import dataset_names
    from comer_d2.d2.engine.config import load_config
    from comer_d2.d2.errors import UserError
except ImportError as error:  # it says what is missing, and what to do
    sys.exit(f"check_segmentation_data.py: error: {error}")

SHOWN = 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True)
    parser.add_argument("opts", nargs="*", metavar="KEY=VALUE", help="overrides of the config")
    args = parser.parse_args()
    cfg = load_config(args.config_file, args.opts)
    resolve_dataset(cfg)
    problems = []
    for split in ("train", "test"):
        for name in dataset_names(cfg, split):
            problems += find_wrong_files(name)
    if problems:
        more = f"\n... {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise UserError(
            f"{len(problems)} samples are wrong:\n" + "\n".join(problems[:SHOWN]) + more
        )
    print("All images and labels can be trained on.")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"check_segmentation_data.py: error: {error}")
