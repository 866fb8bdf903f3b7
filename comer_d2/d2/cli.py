"""Command lines: what train_net.py and the tools share, and train_net.py itself."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

# From Detectron2's sources under current setuptools and torch; nothing a user could act on. They
# come up while its modules are imported, so this stands before them.
for _message in (
    "pkg_resources is deprecated",
    "`torch.jit.script",
    "torch.meshgrid",
    "`broadcast_buffers`",
    "__array__ implementation",
):
    warnings.filterwarnings("ignore", message=_message)

import torch
from omegaconf import DictConfig

from .engine.checks import check_ready
from .engine.config import load_config, settle_device
from .engine.launch import Plan, launch, plan_processes
from .engine.run import Reporting, check_and_run, run
from .errors import Interrupted, UserError, report
from .report.build import RunReports, update_report

EPILOG = """\
examples (comer-d2 train and train_net.py are the same):
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


def command_parser(prog: str | None, description: str, examples: str) -> argparse.ArgumentParser:
    """A parser of a command's line.

    Args:
        prog: the command's name; None: this process's.
        description: what it does.
        examples: shown below the options, as they are.
    """
    return argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def config_parser(prog: str | None, description: str, examples: str) -> argparse.ArgumentParser:
    """As `command_parser`, for command lines that name a config.

    Returns:
        A parser with --config-file; `config_of` reads what it parsed.
    """
    parser = command_parser(prog, description, examples)
    parser.add_argument(
        "--config-file", required=True, metavar="FILE", help="a .py config, or a run's config.yaml"
    )
    add_allow_target(parser)
    return parser


def add_allow_target(parser: argparse._ActionsContainer) -> None:
    """Let a command line allow what a .yaml config may not name otherwise."""
    parser.add_argument(
        "--allow-target",
        action="append",
        default=[],
        metavar="NAME",
        help="package, module or class that a .yaml config may name, beyond the known packages",
    )


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Let a command line end in ``key=value``; parse it with `parse_intermixed_args`."""
    parser.add_argument(
        "opts", nargs="*", metavar="key=value", help="values of the config to change"
    )


def config_of(args: argparse.Namespace) -> DictConfig:
    """The config that a command line names, with its overrides; see `load_config`."""
    return load_config(args.config_file, args.opts, allow_targets=args.allow_target)


def refuse_unused(args: argparse.Namespace, unused: Mapping[str, str]) -> None:
    """Let no option be given in vain.

    Args:
        args: a command line; an option that was not given is None, false or an empty list there.
        unused: options that would have no effect, as `args` has them -> what they are for.

    Raises:
        UserError: one of them was given.
    """
    for name, what in unused.items():
        if getattr(args, name) not in (None, False, []):
            raise UserError(f"--{name.replace('_', '-')} is for {what}")


def run_tool(main: Callable[[], int | None], program: str | None = None) -> int:
    """Run a tool's main; an error that the user can fix is printed in one line.

    Args:
        main: what to run; returns the exit code, or None for 0. What the system refuses it is an error
            that the user can fix.
        program: its name; None: this process's.

    Returns:
        The exit code.
    """
    try:
        with _sigterm_as_ctrl_c():
            return main() or 0
    except UserError as error:
        return report(error, program)
    except BrokenPipeError:  # whoever read the output has gone: comer_d2.__main__ ends quietly
        raise
    except OSError as error:  # a folder that is a file or read-only, a full disk, a port in use
        if os.environ.get("COMER_D2_TRACEBACK"):
            raise
        return report(UserError(str(error)), program)
    except KeyboardInterrupt as stop:
        print("\nstopped", file=sys.stderr)
        return 128 + (stop.args[0] if stop.args else signal.SIGINT)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let a tool that is told to stop remove what it has not finished writing."""

    def stop(signum: int, _: Any) -> None:
        raise KeyboardInterrupt(signum)

    if threading.current_thread() is not threading.main_thread():  # which alone may ask for signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def parse_arguments(
    argv: Sequence[str] | None = None, prog: str = "train_net.py"
) -> argparse.Namespace:
    """Read the command line of train_net.py: Detectron2's flags, then ``key=value``.

    Args:
        argv: arguments without the program's name; None: this process's.
        prog: the program's name.

    Returns:
        config_file, num_gpus, num_machines, machine_rank, dist_url, resume, eval_only, opts. Flags
        and overrides may come in any order.
    """
    parser = config_parser(prog, "Train or evaluate the model that a LazyConfig describes.", EPILOG)
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
    add_overrides(parser)
    return parser.parse_intermixed_args(argv)


def main(argv: Sequence[str] | None = None, prog: str = "train_net.py") -> int:
    """Run train_net.py, which `comer-d2 train` is as well.

    Args:
        argv: arguments without the program's name; None: this process's.
        prog: the program's name, for messages.

    Returns:
        The exit code: 0; 1 when training failed; 2 for a mistake in the command, the config or a
        file; 128 + the signal's number after a signal.
    """
    args = parse_arguments(argv, prog)
    try:
        cfg = config_of(args)
        fell_back = settle_device(cfg.train)
        plan = plan_processes(args, torch.device(cfg.train.device).type, os.environ)
        if fell_back:
            _say_fallback(plan)
        if plan.starter in ("torchrun", "slurm"):
            function = partial(check_and_run, cfg=cfg)
        else:
            dataset = check_ready(cfg, eval_only=args.eval_only, resume=args.resume)
            # Configs hold functions and classes that need not pickle: new processes load their own.
            given = {} if plan.starter == "flags" else {"cfg": cfg}
            function = partial(run, dataset=dataset, **given)
        launch(partial(function, report=Reporting(RunReports().write, update_report)), args, plan)
    except (UserError, Interrupted) as e:
        return report(e, prog)
    except KeyboardInterrupt:
        print(f"\n{prog}: stopped; no new checkpoint was written", file=sys.stderr)
        return 130
    return 0


def _say_fallback(plan: Plan) -> None:
    """One process may take the CPU instead of the GPU; many would rather be a mistake."""
    if plan.world_size > 1:
        raise UserError(
            f"no CUDA device here; to run {plan.world_size} processes on the CPU, add "
            "train.device=cpu"
        )
    print("train_net.py: no CUDA device here, using the CPU", file=sys.stderr, flush=True)
