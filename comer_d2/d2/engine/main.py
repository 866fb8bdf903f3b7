"""From the command line to the processes of a run, and back to an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial

import torch

from ..errors import Interrupted, UserError
from .arguments import parse_arguments
from .checks import check_ready
from .config import load_config, settle_device
from .launch import Plan, launch, plan_processes
from .run import run


def main(argv: Sequence[str] | None = None) -> int:
    """Run train_net.py.

    Args:
        argv: arguments without the program's name; None: this process's.

    Returns:
        The exit code: 0; 1 when training failed; 2 for a mistake in the command, the config or a
        file; 128 + the signal's number after a signal.
    """
    args = parse_arguments(argv)
    try:
        cfg = load_config(args.config_file, args.opts)
        fell_back = settle_device(cfg.train)
        plan = plan_processes(args, torch.device(cfg.train.device).type, os.environ)
        if fell_back:
            _say_fallback(plan)
        check_ready(cfg, eval_only=args.eval_only, resume=args.resume)
        # Configs hold functions and classes that need not pickle: new processes load their own.
        launch(run if plan.starter == "flags" else partial(run, cfg=cfg), args, plan)
    except (UserError, Interrupted) as e:
        return report(e)
    except KeyboardInterrupt:
        print("\ntrain_net.py: stopped; no new checkpoint was written", file=sys.stderr)
        return 130
    return 0


def report(error: UserError | Interrupted) -> int:
    """Print an error that explains itself, and return its exit code."""
    if isinstance(error, UserError) and os.environ.get("COMER_D2_TRACEBACK"):
        raise error
    kind = "error: " if isinstance(error, UserError) else ""
    print(f"train_net.py: {kind}{error}", file=sys.stderr, flush=True)
    return error.exit_code


def _say_fallback(plan: Plan) -> None:
    """One process may take the CPU instead of the GPU; many would rather be a mistake."""
    if plan.world_size > 1:
        raise UserError(
            f"no CUDA device here; to run {plan.world_size} processes on the CPU, add "
            "train.device=cpu"
        )
    print("train_net.py: no CUDA device here, using the CPU", file=sys.stderr, flush=True)
