"""Which processes a run has, from flags and from what torchrun and srun set."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from comer_d2.d2.cli import parse_arguments
from comer_d2.d2.engine import launch as launch_module
from comer_d2.d2.engine.launch import Plan, plan_processes
from comer_d2.d2.errors import Interrupted, UserError
from tests.d2.runs import LIMIT, ROOT

SLURM = {
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_STEP_TASKS_PER_NODE": "4(x2)",
    "SLURM_STEP_NODELIST": "gpu[007-008]",
    "SLURM_JOB_ID": "123456",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


def plan(*flags: str, device: str = "cpu", **environment: str) -> Plan:
    return plan_processes(parse_arguments(["--config-file", "c.py", *flags]), device, environment)


def test_flags_and_overrides_mix_in_any_order() -> None:
    args = parse_arguments(["a.b=1", "--config-file", "c.py", "c=2", "--resume", "d=3"])
    assert args.opts == ["a.b=1", "c=2", "d=3"]
    assert args.resume


def test_one_process_needs_no_group() -> None:
    assert plan() == Plan("none", "cpu")
    assert plan("--num-gpus", "1").starter == "none"


def test_flags_number_the_processes_of_a_machine() -> None:
    second = plan(
        "--num-gpus", "4", "--num-machines", "2", "--machine-rank", "1", "--dist-url", "tcp://a:1"
    )
    assert second == Plan("flags", "cpu", 8, 4, 4, 0, "tcp://a:1")
    assert plan("--num-gpus", "2").address.startswith("tcp://127.0.0.1:")


def test_torchrun() -> None:
    environment = {"WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3", "RANK": "4", "LOCAL_RANK": "1"}
    assert plan(**environment) == Plan("torchrun", "cpu", 6, 3, 4, 1, "env://")
    # srun starting one torchrun per node: torchrun's variables are the nearer ones.
    assert plan(**SLURM, **environment).starter == "torchrun"


def test_slurm() -> None:
    assert plan(**SLURM) == Plan("slurm", "cpu", 8, 4, 5, 1, "tcp://gpu007:23456")
    assert plan(**SLURM, MASTER_ADDR="head", MASTER_PORT="99").address == "tcp://head:99"


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu1", "gpu1"),
        ("gpu1,gpu7", "gpu1"),
        ("gpu[3,5-7],big2", "gpu3"),
        ("n[01-10]-ib", "n01-ib"),
        ("a-b[9-12]", "a-b9"),
    ],
)
def test_first_host_of_a_slurm_list(nodes: str, first: str) -> None:
    assert plan(**{**SLURM, "SLURM_STEP_NODELIST": nodes}).address == f"tcp://{first}:23456"


def test_a_batch_script_without_srun_is_one_process() -> None:
    assert plan(SLURM_JOB_ID="1", SLURM_NTASKS="8", SLURM_PROCID="0").starter == "none"


@pytest.mark.parametrize(
    ("flags", "environment", "message"),
    [
        (["--num-gpus", "0"], {}, "at least 1"),
        (["--num-machines", "2"], {}, "need --dist-url"),
        (["--num-machines", "2", "--machine-rank", "2"], {}, "from 0 to 1"),
        (["--num-gpus", "8"], SLURM, "slurm started 4 processes"),
        (["--num-machines", "2"], SLURM, "leave it out"),
        ([], {**SLURM, "SLURM_STEP_TASKS_PER_NODE": "4,3"}, "--ntasks-per-node"),
    ],
)
def test_contradictions_are_errors(flags: list[str], environment: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(*flags, **environment)


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    with pytest.raises(UserError, match="2 processes on this machine, but it has 1 GPUs"):
        plan("--num-gpus", "2", device="cuda")


def start() -> tuple[subprocess.Popen, dict[int, int]]:
    """launched.py, and the numbers of its two processes by their ranks, once both sleep."""
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("launched.py"))],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    return process, dict(map(int, process.stdout.readline().split()) for _ in range(2))


def is_running(pid: int) -> bool:
    """Not a zombie either, which nobody here would reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_processes_end_with_the_one_that_started_them() -> None:
    process, ranks = start()
    children = list(ranks.values())
    assert all(map(is_running, children))
    process.kill()
    process.wait()  # not for its pipes: the children hold them, too
    deadline = time.monotonic() + LIMIT
    while any(map(is_running, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(is_running, children))


@pytest.mark.slow
def test_a_process_that_dies_is_named_with_its_signal() -> None:
    process, ranks = start()
    os.kill(ranks[1], signal.SIGKILL)
    _, printed = process.communicate(timeout=LIMIT)
    assert process.returncode == 128 + signal.SIGKILL
    assert "process 1 of 2 (counted from 0) was ended by signal SIGKILL" in printed
    assert "exit code 137" in printed


def test_an_interrupted_run_s_first_process_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By those of its machine: the first that ends, ends all, and its loggers may take minutes."""
    seconds: list[float] = []
    monkeypatch.setattr(launch_module.time, "sleep", seconds.append)
    stopped = Interrupted(signal.SIGTERM, "stopped after 3 iterations")
    codes = [
        launch_module._report_once(stopped, Plan("flags", "cpu", 4, 2, rank, rank % 2, "tcp://a:1"))
        for rank in range(4)
    ]
    assert codes == [128 + signal.SIGTERM] * 4
    assert min(seconds[0], seconds[2]) > 600 and seconds[1] == 0  # of ranks 1, 3, and 2
    assert capsys.readouterr().err.count("stopped after 3 iterations") == 1


@pytest.mark.slow
def test_what_one_process_finds_ends_all_and_is_said_once(tmp_path: Path) -> None:
    """Started by others, as torchrun does; the processes meet before the first of them checks."""
    # Here, where torchrun's agent has its own: on a port that nobody else takes meanwhile.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    command = [sys.executable, "train_net.py", "--config-file", "tests/d2/tiny_mask_rcnn.py"]
    command += ["train.device=cpu", "train.init_checkpoint=absent.pth"]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "OMP_NUM_THREADS": "1"}
    meeting |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TINY_COCO": str(tmp_path)}
    processes = [
        subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **meeting, "WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    printed = [process.communicate(timeout=LIMIT)[1] for process in processes]
    assert [process.returncode for process in processes] == [2, 2], printed
    assert "absent.pth' does not exist" in printed[0]
    assert "error: " not in printed[1] and "Traceback" not in printed[1]
