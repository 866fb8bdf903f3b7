"""Starts two processes as train_net.py does; each prints its number. Not a test itself."""

import os
import signal
import sys
import time

import torch.distributed as dist

from comer_d2.d2.cli import parse_arguments, run_tool
from comer_d2.d2.engine.launch import launch, plan_processes


def work(mode: str) -> None:
    os.write(
        1, f"{os.getpid()}\n".encode()
    )  # one write a line: print's own are two where output is unbuffered
    if mode == "die" and dist.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(100)


def main() -> None:
    args = parse_arguments(["--config-file", "none.py", "--num-gpus", "2"])
    launch(work, sys.argv[1], plan_processes(args, "cpu", {}))


if __name__ == "__main__":
    sys.exit(run_tool(main))
