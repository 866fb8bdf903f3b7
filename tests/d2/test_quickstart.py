"""The quickstart as a user runs it, with a few tiny iterations: interrupted, resumed, drawn."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from tests.d2.runs import LIMIT, ROOT, quickstart_tool

ITERATIONS = 25


@pytest.fixture(scope="module")
def quickstart() -> ModuleType:
    return quickstart_tool()


def _start(folder: Path, *arguments: str) -> subprocess.Popen:
    command = [sys.executable, ROOT / "tools" / "quickstart.py", "--output", folder / "run"]
    command += ["--train-images", "8", "--val-images", "4", "--least", "0", *arguments]
    command += [f"train.max_iter={ITERATIONS}", "dataloader.train.total_batch_size=2"]
    command += ["train.log_period=1", "train.eval_period=0", "dataloader.train.num_workers=0"]
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(folder / "datasets"),
        "PYTHONUNBUFFERED": "1",
    }
    return subprocess.Popen(
        command,
        cwd=folder,  # it works from anywhere
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # A page of lines that nobody has read, and training waits.
        bufsize=0,
        pipesize=4096,
    )


def _read(process: subprocess.Popen, until: bytes = b"") -> str:
    """What the process prints, to the end or to the first line with this in it."""
    if not until:
        output, _ = process.communicate(timeout=LIMIT)
        return output.decode()
    lines = []
    for line in process.stdout:
        lines.append(line.decode())
        if until in line:
            break
    return "".join(lines)


def _metrics(run: Path) -> list[dict]:
    path = run / "metrics.json"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_interrupted_it_goes_on_draws_and_fails_below_its_floor(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = _start(tmp_path)
    output = _read(process, until=b"iter: 1/")
    process.send_signal(signal.SIGINT)
    output += _read(process)
    assert process.returncode == 130, output
    assert "goes on from there" in output
    assert (run / "last_checkpoint").exists() and not (run / "predictions.png").exists()
    manifest = tmp_path / "datasets" / "digits" / "manifest.json"
    made = manifest.stat().st_mtime_ns
    seen = max(line["iteration"] for line in _metrics(run))
    assert seen < ITERATIONS - 1

    process = _start(tmp_path, "--least", "101")
    output = _read(process)
    assert process.returncode == 1, output
    assert "Going on after" in output
    assert "quickstart: error: box AP" in output.splitlines()[-1]
    assert "is below the 101" in output.splitlines()[-1]
    iterations = [line["iteration"] for line in _metrics(run) if "total_loss" in line]
    assert iterations == sorted(set(iterations)) and iterations[-1] == ITERATIONS - 1
    assert manifest.stat().st_mtime_ns == made  # the dataset was not made again
    record = json.loads((run / "quickstart.json").read_text())
    evaluation = json.loads((run / "evaluation.json").read_text())["results"]
    assert record["result"]["box AP"] == evaluation["bbox"]["AP"]
    sheet = Image.open(run / "predictions.png")
    assert min(sheet.size) > 600
    assert f"pictures:    {run / 'predictions.png'}" in output
    assert f"report:      {run / 'report' / 'index.html'}" in output
    assert "<h2>Training</h2>" in (run / "report" / "index.html").read_text()


def test_interrupted_run_is_kept(quickstart: ModuleType, tmp_path: Path) -> None:
    quickstart.prepare_folder(tmp_path / "run", {"overrides": ["a=1"]}, fresh=False)
    (tmp_path / "run" / "model.pth").touch()
    quickstart.prepare_folder(tmp_path / "run", {"overrides": ["a=1"]}, fresh=False)
    assert (tmp_path / "run" / "model.pth").exists()


@pytest.mark.parametrize("why", ["finished", "other settings", "fresh", "torn record"])
def test_other_runs_are_trained_anew(quickstart: ModuleType, tmp_path: Path, why: str) -> None:
    run = tmp_path / "run"
    quickstart.prepare_folder(run, {"overrides": ["a=1"]}, fresh=False)
    (run / "model.pth").touch()
    if why == "finished":
        quickstart.finish_folder(run, {"box AP": 1.0})
    if why == "torn record":
        (run / "quickstart.json").write_text("")
    settings = {"overrides": ["a=2" if why == "other settings" else "a=1"]}
    quickstart.prepare_folder(run, settings, fresh=why == "fresh")
    assert not (run / "model.pth").exists()


def test_a_folder_of_something_else_is_refused(quickstart: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SystemExit, match="holds something else"):
        quickstart.prepare_folder(tmp_path, {}, fresh=True)
    assert (tmp_path / "thesis.tex").exists()


def test_a_folder_that_was_only_evaluated_in_can_be_trained_in(
    quickstart: ModuleType, tmp_path: Path
) -> None:
    (tmp_path / "evaluation.json").write_text("{}")
    (tmp_path / "log.txt").write_text("")
    quickstart.prepare_folder(tmp_path, {"overrides": []}, fresh=False)
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart.json"]
