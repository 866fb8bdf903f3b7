"""The processes of a run: one, many started here, or those of torchrun or SLURM."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import multiprocessing.connection
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.utils import comm

from ..errors import Interrupted, TrainingError, UserError, report

TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Plan:
    """Who starts how many processes, and how they meet.

    Args:
        starter: "none" (this process alone), "flags" (processes are started here), "torchrun" or
            "slurm" (this process is one of many that were started already).
        device: "cpu" or "cuda".
        world_size: processes in all.
        local_size: processes on this machine.
        rank: this process's number ("torchrun", "slurm"), or that of the first one started here.
        local_rank: this process's number on its machine.
        address: where the processes meet, "env://" or "tcp://host:port".
    """

    starter: str
    device: str
    world_size: int = 1
    local_size: int = 1
    rank: int = 0
    local_rank: int = 0
    address: str = ""

    @property
    def first(self) -> bool:
        """Whether this process speaks for all."""
        return self.rank == 0


def plan_processes(args: argparse.Namespace, device: str, environment: Mapping[str, str]) -> Plan:
    """Read the flags, and the variables that torchrun and srun set.

    Args:
        args: num_gpus, num_machines, machine_rank, dist_url.
        device: "cpu" or "cuda".
        environment: the process's environment.

    Raises:
        UserError: flags that contradict the environment or this machine.
    """
    if "LOCAL_RANK" in environment and "WORLD_SIZE" in environment:
        plan = _torchrun_plan(device, environment)
    # Set by srun for its steps only: a batch script that calls python is one process.
    elif int(environment.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        plan = _slurm_plan(device, environment)
    else:
        return _flags_plan(args, device)
    if args.num_gpus not in (None, plan.local_size):
        raise UserError(
            f"--num-gpus {args.num_gpus}, but {plan.starter} started {plan.local_size} processes "
            "on this machine; leave --num-gpus out"
        )
    if args.num_machines != 1:
        raise UserError(f"--num-machines is {plan.starter}'s to know; leave it out")
    _check_gpus(plan)
    return plan


def _torchrun_plan(device: str, environment: Mapping[str, str]) -> Plan:
    world_size = int(environment["WORLD_SIZE"])
    return Plan(
        "torchrun",
        device,
        world_size,
        int(environment.get("LOCAL_WORLD_SIZE", world_size)),
        int(environment["RANK"]),
        int(environment["LOCAL_RANK"]),
        "env://",
    )


def _slurm_plan(device: str, environment: Mapping[str, str]) -> Plan:
    """The variables are those that `man srun` lists under "output environment variables"."""
    world_size = int(environment["SLURM_STEP_NUM_TASKS"])
    per_node = environment.get("SLURM_STEP_TASKS_PER_NODE", str(world_size))
    match = re.fullmatch(r"(\d+)(\(x\d+\))?", per_node)
    if not match:
        raise UserError(
            f"SLURM starts {per_node} tasks on the nodes; they must be as many on each: use "
            "srun --ntasks-per-node"
        )
    host = environment.get("MASTER_ADDR") or _first_host(environment["SLURM_STEP_NODELIST"])
    # All tasks must choose the same port: one that follows from the job's number.
    port = environment.get("MASTER_PORT") or 20000 + int(environment["SLURM_JOB_ID"]) % 20000
    return Plan(
        "slurm",
        device,
        world_size,
        int(match[1]),
        int(environment["SLURM_PROCID"]),
        int(environment["SLURM_LOCALID"]),
        f"tcp://{host}:{port}",
    )


def _first_host(nodes: str) -> str:
    """First of SLURM's compressed host list: ``gpu[007-010,12],big1`` -> ``gpu007``."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?([^\[,]*)", nodes)
    if not match:
        raise UserError(f"SLURM_STEP_NODELIST={nodes!r} names no host; set MASTER_ADDR")
    return match[1] + (match[2] or "") + match[3]


def _flags_plan(args: argparse.Namespace, device: str) -> Plan:
    processes = 1 if args.num_gpus is None else args.num_gpus
    if processes < 1 or args.num_machines < 1:
        raise UserError("--num-gpus and --num-machines must be at least 1")
    if not 0 <= args.machine_rank < args.num_machines:
        raise UserError(
            f"--machine-rank {args.machine_rank} must be from 0 to {args.num_machines - 1}"
        )
    world_size = processes * args.num_machines
    if world_size == 1:
        return Plan("none", device)
    address = args.dist_url
    if address == "auto":
        if args.num_machines > 1:
            raise UserError("several machines need --dist-url tcp://HOST:PORT of the first one")
        address = f"tcp://127.0.0.1:{_free_port()}"
    first = args.machine_rank * processes
    plan = Plan("flags", device, world_size, processes, first, 0, address)
    _check_gpus(plan)
    return plan


def _check_gpus(plan: Plan) -> None:
    """One process per GPU; on the CPU any number."""
    have = torch.cuda.device_count() if plan.device == "cuda" else plan.local_size
    if plan.local_size > have:
        raise UserError(f"{plan.local_size} processes on this machine, but it has {have} GPUs")


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def launch(function: Callable[[argparse.Namespace], Any], args: Any, plan: Plan) -> None:
    """Call ``function(args)`` in every process of the plan, and wait.

    Args:
        function: importable by name, as it may be called in a new process.
        args: its argument; picklable.
        plan: of `plan_processes`.

    Raises:
        UserError, Interrupted: what `function` raised. Processes started here print it themselves,
            and this process exits with their code.
        TrainingError: a process started here was ended by a signal.
    """
    if plan.starter == "none":
        function(args)
    elif plan.starter == "flags":
        _start_and_wait(function, args, plan)
    else:
        _in_process_group(function, args, plan)


def _in_process_group(function: Callable[[Any], Any], args: Any, plan: Plan) -> None:
    """Join the other processes, call, leave. The right device must be known before joining."""
    if plan.device == "cuda":
        torch.cuda.set_device(plan.local_rank)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, torch.get_num_threads() // plan.local_size))
    try:
        dist.init_process_group(
            "nccl" if plan.device == "cuda" else "gloo",
            init_method=plan.address,
            world_size=plan.world_size,
            rank=plan.rank,
            timeout=TIMEOUT,
        )
    except (RuntimeError, ValueError) as e:
        raise UserError(f"processes cannot meet at {plan.address}: {e}") from e
    comm.create_local_process_group(plan.local_size)
    comm.synchronize()
    function(args)
    comm.synchronize()
    dist.destroy_process_group()


def _start_and_wait(function: Callable[[Any], Any], args: Any, plan: Plan) -> None:
    """Start this machine's processes; pass signals on to them; end as they end."""
    received: list[int] = []

    def pass_on(signum: int, frame: Any) -> None:
        received.append(signum)
        for process in context.processes:
            if process.is_alive():
                os.kill(process.pid, signal.SIGTERM)

    # When one process ends with an error the others are ended too; it need not say so.
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)
    context = mp.start_processes(
        _started, args=(function, args, plan), nprocs=plan.local_size, join=False
    )
    previous = {s: signal.signal(s, pass_on) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not context.join():
            pass
    except mp.ProcessExitedException as e:
        if received:
            sys.exit(128 + received[0])
        if e.signal_name:  # it could not say why itself
            raise _died(plan.rank + e.error_index, plan.world_size, -e.exit_code) from e
        sys.exit(e.exit_code)
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _died(rank: int, world_size: int, signum: int) -> TrainingError:
    """The error for a process that a signal ended."""
    name = signal.Signals(signum).name
    hint = " (often the system's, when memory ran out)" if name == "SIGKILL" else ""
    error = TrainingError(
        f"process {rank} of {world_size} (counted from 0) was ended by signal {name}{hint}: exit code "
        f"{128 + signum}; the others were stopped"
    )
    error.exit_code = 128 + signum
    return error


def _end_with_parent() -> None:
    """Wait for the process that started this one; it may be killed, and says nothing then."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(128 + signal.SIGKILL)


def _started(local_rank: int, function: Callable[[Any], Any], args: Any, plan: Plan) -> None:
    """Body of a process started here; exits with the code of its error."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # A terminal sends Ctrl-C to all processes; the first one passes it on, once.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Data loading processes start as they do in a run of one process (by forking, on Linux), not
    # as this process was started: that would import everything anew in each.
    multiprocessing.set_start_method(None, force=True)
    own = replace(plan, rank=plan.rank + local_rank, local_rank=local_rank)
    try:
        _in_process_group(function, args, own)
    except (UserError, Interrupted) as e:
        exit_code = _report_once(e, own)
    except KeyboardInterrupt:  # a second signal
        exit_code = 130
    except Exception:
        traceback.print_exc()
        exit_code = 1
    else:
        return
    sys.stderr.flush()
    sys.exit(exit_code)


def _report_once(error: UserError | Interrupted, plan: Plan) -> int:
    """Most errors come up in all processes alike: the first prints, and its end ends the others."""
    if plan.first:
        return report(error, "train_net.py")
    if isinstance(error, Interrupted):
        # All stop together, but the first has loggers to finish, which may take longer than an error.
        time.sleep(TIMEOUT.total_seconds() if plan.local_rank else 0.0)
        return error.exit_code
    time.sleep(5.0)
    return report(error, "train_net.py")
