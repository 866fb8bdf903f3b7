"""`make gpu` on a machine without one: every part runs at tiny sizes, and what is wrong is named."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from comer_d2 import ops

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu  # noqa: E402
import gpu_parts  # noqa: E402

MEASURE = [
    "deformable attention",
    "token convolution",
    "new image sizes",
    "eager steps",
    "compiled steps, S",
]


@pytest.mark.parametrize("name", MEASURE)
def test_a_part_measures_and_sets_no_target_on_a_cpu(name: str) -> None:
    result = gpu.run_part(name, "cpu")
    assert result["status"] == "ran", result
    assert result["rows"]
    assert result["targets"] == []


def test_memory_is_that_of_every_kind_of_checkpointing() -> None:
    result = gpu.run_part("memory", "cpu")
    assert result["targets"] == []
    kinds = [row["network"].removeprefix("ViT-CoMer, ") for row in result["rows"]]
    of_a_size = ["without checkpointing", "with checkpointing", "with checkpointing by stage"]
    assert kinds == 2 * [f"{kind}, tiny" for kind in of_a_size]


def test_golden_networks_have_targets_on_every_device() -> None:
    """Errors do not depend on the machine's speed."""
    result = gpu.run_part("golden networks", "cpu")
    assert result["status"] == "ran", result
    assert len(result["targets"]) >= 4
    assert all(target["met"] for target in result["targets"]), result["targets"]


def test_the_command_says_what_it_skipped(tmp_path: Path) -> None:
    parts = ["token convolution", "compute-sanitizer"]
    run = subprocess.run(
        [sys.executable, "benchmarks/gpu.py", "--device=cpu", f"--output={tmp_path}"]
        + ["--parts", *parts],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "skipped: no GPU that torch can use" in run.stdout
    (written,) = tmp_path.glob("gpu_*_torch*_cuda*.json")
    found = json.loads(written.read_text())
    assert [found["parts"][name]["status"] for name in parts] == ["ran", "skipped"]
    text = written.with_suffix(".md").read_text()
    assert "| token convolution | ran |" in text
    assert gpu.NO_GPU in text
    assert written.with_suffix(".log").read_text().startswith("=== token convolution\n")


def test_what_was_found_outlives_a_run_that_is_cut_off(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def run_apart(name: str, device: str, seconds: float) -> dict[str, object]:
        if name == "memory":
            raise KeyboardInterrupt
        return {"status": "ran", "rows": [{"step": 1.5}], "targets": [], "output": "all of it"}

    def keep(results: dict[str, dict[str, object]]) -> None:
        gpu.write_results(tmp_path / "found.json", {"device": "A card"}, results, None)

    monkeypatch.setattr(gpu, "run_apart", run_apart)
    with pytest.raises(KeyboardInterrupt):
        gpu.run_all(["eager steps", "memory"], "cuda", 8, keep)
    parts = json.loads((tmp_path / "found.json").read_text())["parts"]
    assert parts["eager steps"]["rows"] == [{"step": 1.5}] and list(parts) == ["eager steps"]
    assert (tmp_path / "found.log").read_text() == "=== eager steps\nall of it"


def test_parts_share_the_time_that_is_left() -> None:
    names = list(gpu_parts.PARTS)
    limit = gpu_parts.PARTS[names[0]].seconds
    assert gpu.seconds_for(names, 480) == limit  # less than there would be for all
    assert gpu.seconds_for(["compiled steps, S", "compiled steps, L"], 540) == 270
    assert gpu.seconds_for(names, 7) == 7


@pytest.mark.parametrize("name", ["deformable attention", "eager steps"])
def test_pytorchs_code_is_not_measured_in_the_operators_place(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """As where the build has failed."""
    monkeypatch.setattr(ops, "library_status", lambda: {"cuda": "there is no _C_cuda library"})
    result = gpu.run_part(name, "cuda")
    assert result["status"] == "failed"
    assert result["why"] == "there is nothing to measure: there is no _C_cuda library"


def test_tests_run_in_several_processes_where_xdist_is(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run_command(command: list[str], **environment: str) -> str:
        commands.append(command)
        raise gpu_parts.FailedError("not run")

    monkeypatch.setattr(gpu_parts, "run_command", run_command)
    for missing in ([], ["xdist"]):
        monkeypatch.setattr(gpu_parts, "find_missing", lambda *names, found=missing: found)
        with pytest.raises(gpu_parts.FailedError):
            gpu_parts.run_tests(["tests/ops"])
    assert ["-n" in command for command in commands] == [True, False]


# What a machine with a GPU needs to have for `make gpu`, with what comer_d2 itself stands on.
PACKAGES = {"torch", "torchvision", "timm", "numpy", "scipy", "safetensors", "pytest"}


def statements_for_any_device(path: Path) -> Iterator[ast.AST]:
    """All of a file of tests but those of the CPU alone."""
    for statement in ast.parse(path.read_text()).body:
        marks = [ast.unparse(mark) for mark in getattr(statement, "decorator_list", ())]
        if "pytest.mark.cpu" not in marks:
            yield from ast.walk(statement)


def test_tests_of_any_device_name_none_and_need_no_other_package() -> None:
    """A GPU's machine may have no more than torch, timm and pytest, and its tests no tensor on a CPU."""
    known, wrong = PACKAGES | sys.stdlib_module_names | {"comer_d2", "tests"}, []
    files = [
        p for room in ("layers", "network", "heads") for p in (ROOT / "tests" / room).rglob("*.py")
    ]
    for path in files:
        for node in statements_for_any_device(path):
            if isinstance(node, ast.Import | ast.ImportFrom):
                first = node.names[0].name if isinstance(node, ast.Import) else node.module
                named = [] if first.partition(".")[0] in known else [first]
            elif isinstance(node, ast.Call):
                call = ast.unparse(node)
                named = (
                    [call] if call.startswith(("torch.autocast('cpu'", "torch.Generator()")) else []
                )
            else:
                continue
            wrong += [f"{path.name}, line {node.lineno}: {name}" for name in named]
    assert len(files) > 20 and not wrong


def test_a_part_that_takes_too_long_is_ended() -> None:
    result = gpu.run_apart("eager steps", "cpu", seconds=0.2)
    assert result["status"] == "failed" and result["why"] == "not done after 0 s"


def test_missed_targets_and_failed_parts_are_named() -> None:
    slow = gpu_parts.Target("S, eager step to the plain ViT's", 2.6, 2.5)
    fast = gpu_parts.Target("L, eager step to the plain ViT's", 1.9, 1.9)
    targets = [
        {"name": t.name, "value": t.value, "limit": t.limit, "met": t.met} for t in (slow, fast)
    ]
    results = {
        "build": {"status": "failed", "why": "setup.py | no compiler", "seconds": 1.0},
        "eager steps": {"status": "ran", "rows": [], "targets": targets, "seconds": 1.0},
        "compute-sanitizer": {"status": "skipped", "why": "no GPU", "seconds": 0.1},
    }
    assert gpu.missed(results) == [
        "build: setup.py | no compiler",
        "eager steps: S, eager step to the plain ViT's is 2.6, more than 2.5",
    ]
    text = gpu.report({"device": "A card", "torch": "2.14"}, results)
    assert "| eager steps | S, eager step to the plain ViT's | 2.6 | 2.5 | MISSED |" in text
    assert "| build | failed: setup.py \\| no compiler | 1 |" in text


def test_targets_of_the_operator_are_ratios_of_their_own_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_parts.torch.cuda, "get_device_name", lambda: "NVIDIA H100 80GB HBM3")
    names = ["comer_d2", "comer_d2 bf16", "fused bf16", "deterministic", "deformops bf16"]
    forward = dict(zip(names, [0.012, 0.008, 0.008, 0.012, 0.010]))
    both = dict(zip(names, [0.112, 0.1, 0.1, 0.312, 0.080]))
    found = {t.name: t for t in gpu_parts.targets_of_operator("Decoder-300", forward, both)}
    by_name = {name.removeprefix("Decoder-300: "): t.value for name, t in found.items()}
    assert by_name["deterministic backward to the fast one"] == pytest.approx(3.0)
    assert by_name["bf16, forward + backward, to float32"] == pytest.approx(0.1 / 0.112)
    assert by_name["comer_d2 bf16 forward + backward to deformops"] == pytest.approx(1.25)
    assert by_name["comer_d2 backward, ms"] == pytest.approx(0.1)
    missed = {name for name, t in found.items() if not t.met}
    assert missed == {
        "Decoder-300: comer_d2 bf16 forward + backward to deformops",
        "Decoder-300: comer_d2 backward, ms",
        "Decoder-300: comer_d2 bf16 backward, ms",
    }
