#!/usr/bin/env python3
"""Read every image and label of a config's data once, and list the files that are wrong.

python3 tools/check_segmentation_data.py --config-file configs/COCOStuff/semantic/mask2former_comer_l.py
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

try:
    from comer_d2.d2.cli import add_overrides, config_of, config_parser, run_tool
    from comer_d2.d2.data.check_labels import find_wrong_files
    from comer_d2.d2.data.custom import resolve_dataset
    from comer_d2.d2.engine.checks import dataset_names
    from comer_d2.d2.errors import UserError
except ImportError as error:  # it says what is missing, and what to do
    sys.exit(f"check_segmentation_data.py: error: {error}")

SHOWN = 20


def main() -> None:
    parser = config_parser(__doc__)
    add_overrides(parser)
    cfg = config_of(parser.parse_intermixed_args())
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
    sys.exit(run_tool(main))
