"""The quickstart as a user runs it, with a few tiny iterations: interrupted, resumed, drawn."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
ITERATIONS = 20


@pytest.fixture(scope="module")
def quickstart() -> ModuleType:
    # By path: Detectron2 installs a package that is called tools, too.
    spec = importlib.util.spec_from_file_location("quickstart", ROOT / "tools" / "quickstart.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        text=True,
    )


def _metrics(run: Path) -> list[dict]:
    path = run / "metrics.json"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_interrupted_quickstart_goes_on_and_draws(tmp_path: Path) -> None:
    run = tmp_path / "run"
    process = _start(tmp_path)
    while process.poll() is None and len(_metrics(run)) < 3:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "goes on from there" in output
    assert (run / "last_checkpoint").exists() and not (run / "predictions.png").exists()
    manifest = tmp_path / "datasets" / "digits" / "manifest.json"
    made = manifest.stat().st_mtime_ns
    seen = max(line["iteration"] for line in _metrics(run))
    assert seen < ITERATIONS - 1

    process = _start(tmp_path)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    assert "Going on after" in output
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


def test_ap_below_the_floor_is_a_failure(tmp_path: Path) -> None:
    process = _start(
        tmp_path, "--least", "101", "--task", "detection-vit", "--short", "train.seed=1"
    )
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "is below the 101" in output
    assert (tmp_path / "run" / "predictions.png").exists()


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
