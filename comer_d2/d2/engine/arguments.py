"""The command line of train_net.py: Detectron2's flags, then ``key=value``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

EPILOG = """\
examples:
  one process:        train_net.py --config-file cfg.py
  on the CPU:         train_net.py --config-file cfg.py train.device=cpu
  eight GPUs:         train_net.py --config-file cfg.py --num-gpus 8
  two CPU processes:  train_net.py --config-file cfg.py --num-gpus 2 train.device=cpu
  two machines:       add --num-machines 2 --machine-rank 0 (and 1) --dist-url tcp://HOST:PORT
  torchrun:           torchrun --nproc-per-node 8 train_net.py --config-file cfg.py
  SLURM:              srun --ntasks-per-node 8 python train_net.py --config-file cfg.py
  changed values:     ... train.max_iter=1000 optimizer.lr=1e-4

Ctrl-C and SIGTERM finish the step and write a checkpoint; --resume goes on from it.
COMER_D2_TRACEBACK=1 shows where an error came from."""


def parse_arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line.

    Args:
        argv: arguments without the program's name; None: this process's.

    Returns:
        config_file, num_gpus, num_machines, machine_rank, dist_url, resume, eval_only, opts. Flags
        and overrides may come in any order.
    """
    parser = argparse.ArgumentParser(
        prog="train_net.py",
        description="Train or evaluate the detector that a LazyConfig describes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-file", required=True, metavar="FILE", help="the config to run")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on from the last checkpoint in train.output_dir, if there is one",
    )
    parser.add_argument(
        "--eval-only",
        action="store_true",
        help="evaluate train.init_checkpoint (with --resume: the last checkpoint)",
    )
    parser.add_argument(
        "--num-gpus", type=int, metavar="N", help="processes per machine, one GPU each (default 1)"
    )
    parser.add_argument("--num-machines", type=int, default=1, metavar="N", help="machines in all")
    parser.add_argument(
        "--machine-rank", type=int, default=0, metavar="N", help="this machine's number, from 0"
    )
    parser.add_argument(
        "--dist-url",
        default="auto",
        help="where processes meet, such as tcp://HOST:PORT; auto: a free port of this machine",
    )
    parser.add_argument("opts", nargs="*", metavar="key=value", help="values to change")
    return parser.parse_intermixed_args(argv)
