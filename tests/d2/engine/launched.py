"""Starts two processes as train_net.py does; each prints its rank and its number. Not a test itself."""

import os
import sys
import time

import torch.distributed as dist

from comer_d2.d2.cli import parse_arguments, run_tool
from comer_d2.d2.engine.launch import launch, plan_processes


def work(_: None) -> None:
    # One write a line: print's own are two where output is unbuffered.
    os.write(1, f"{dist.get_rank()} {os.getpid()}\n".encode())
    time.sleep(1000)


def main() -> None:
    args = parse_arguments(["--config-file", "none.py", "--num-gpus", "2"])
    launch(work, None, plan_processes(args, "cpu", {}))


if __name__ == "__main__":
    sys.exit(run_tool(main))
