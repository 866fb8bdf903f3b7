"""comer-d2 data check: read every image and annotation of a config's data once."""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from ..cli import add_overrides, config_of, config_parser, run_tool
from ..data.check import find_problems, write_repaired
from ..data.custom import check_dataset, register_dataset
from ..data.statistics import describe
from ..engine.checks import dataset_names
from ..engine.overrides import typed_overrides

EXAMPLE = """\
examples:
  comer-d2 data check --config-file configs/custom/mask_rcnn_comer_s.py dataset.train_json=train.json ...
  comer-d2 data check --config-file configs/COCOStuff/semantic/mask2former_comer_l.py
  comer-d2 data check --config-file my_config.py --repaired repaired/"""


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> int:
    """Run the command.

    Args:
        argv: arguments without the command's name; None: this process's.
        prog: the command's name.

    Returns:
        The exit code: 1 when something is wrong with the data.
    """
    parser = config_parser(
        prog,
        "Read every image and annotation of a config's data once, and list all that is wrong; where "
        "nothing is, tell what there is: classes, sizes, copies.",
        EXAMPLE,
    )
    parser.add_argument(
        "--repaired",
        metavar="FOLDER",
        type=Path,
        help="write a copy of the annotations there, without what can be repaired or is left out",
    )
    add_overrides(parser)
    return run_tool(partial(check, parser.parse_intermixed_args(argv)), prog)


def check(args: argparse.Namespace) -> int:
    """Check what a command line names."""
    cfg = config_of(args)
    if args.repaired:
        lines, keys = write_repaired(cfg, args.repaired)
        written = typed_overrides({f"dataset.{key}": path for key, path in keys.items()})
        print("\n".join([*lines, f"written: {written}"]))
        return 0
    problems = find_problems(cfg)
    if problems:
        print("\n".join(problems))
        return 1
    print("All images and annotations can be trained on.")
    register_dataset(cfg, check_dataset(cfg))
    print("\n".join(describe([*dataset_names(cfg, "train"), *dataset_names(cfg, "test")])))
    return 0
