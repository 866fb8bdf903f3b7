"""The quickstart's Mask2Former as a user runs it, with a few tiny iterations, and its other tasks."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from comer_d2.d2.cli import main
from comer_d2.d2.modeling.mask2former import Mask2Former

ROOT = Path(__file__).parents[2]
FEW = [
    "train.log_period=1",
    "train.eval_period=0",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
]
SHORT = ["train.max_iter=3", *FEW]


def start(folder: Path, run: str, *arguments: str) -> subprocess.Popen:
    """tools/quickstart.py on 8 scenes in folder/datasets, into folder/run."""
    command = [sys.executable, ROOT / "tools" / "quickstart.py", "--output", folder / run]
    command += ["--task", "panoptic", "--train-images", "8", "--val-images", "4", *arguments]
    return subprocess.Popen(
        command,
        cwd=folder,  # it works from anywhere
        env={**os.environ, "DETECTRON2_DATASETS": str(folder / "datasets")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what tools/quickstart.py made of 8 scenes: datasets and run."""
    folder = tmp_path_factory.mktemp("quickstart")
    process = start(folder, "run", "--least", "0", *SHORT)
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    return folder


def test_one_model_for_all_tasks(quickstart: Path) -> None:
    run = quickstart / "run"
    results = json.loads((run / "evaluation.json").read_text())["results"]
    assert set(results) == {"panoptic_seg", "segm", "sem_seg"}
    assert Image.open(run / "predictions.png").size[0] > 600
    record = json.loads((run / "quickstart.json").read_text())["result"]
    assert record["PQ"] == results["panoptic_seg"]["PQ"]
    classes = [key for key in results["sem_seg"] if key.startswith("IoU-")]
    assert classes == [f"IoU-{name}" for name in [*range(10), "page"]]


def metrics(run: Path) -> list[dict]:
    path = run / "metrics.json"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_interrupted_it_goes_on_and_a_low_result_is_a_failure(quickstart: Path) -> None:
    manifest = quickstart / "datasets" / "digits-panoptic" / "manifest.json"
    annotations = manifest.with_name("panoptic_val.json")
    made = [path.stat().st_mtime_ns for path in (manifest, annotations)]
    run = quickstart / "interrupted"
    arguments = ["--task", "instance", "--least", "101", "train.max_iter=20", *FEW]
    process = start(quickstart, "interrupted", *arguments)
    while process.poll() is None and len(metrics(run)) < 3:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert "the same command goes on from there" in output
    seen = max(line["iteration"] for line in metrics(run))
    assert seen < 19

    process = start(quickstart, "interrupted", *arguments)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output
    assert "Going on after" in output
    assert "quickstart: error: mask AP" in output.splitlines()[-1]
    assert "is below the 101" in output.splitlines()[-1]
    iterations = [line["iteration"] for line in metrics(run) if "total_loss" in line]
    assert iterations == sorted(set(iterations))
    assert iterations[-1] == 19
    assert (run / "predictions.png").exists()
    assert [path.stat().st_mtime_ns for path in (manifest, annotations)] == made


@pytest.mark.parametrize(("task", "measured"), [("semantic", "sem_seg"), ("instance", "segm")])
def test_a_task_alone(
    quickstart: Path,
    task: str,
    measured: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(quickstart / "datasets"))
    config = ROOT / "configs" / "quickstart" / f"mask2former_comer_digits_{task}.py"
    assert main(["--config-file", str(config), f"train.output_dir={tmp_path}", *SHORT]) == 0
    results = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    assert set(results) == {measured}
    again = evaluate(config, tmp_path / "model_final.pth", tmp_path / "again")
    assert again == results


@pytest.mark.parametrize("config", ["eomt_digits.py", "mask2former_vit_digits.py"])
def test_without_comer_it_is_the_same_three_tasks(
    quickstart: Path, config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(quickstart / "datasets"))
    path = ROOT / "configs" / "quickstart" / config
    assert main(["--config-file", str(path), f"train.output_dir={tmp_path}", *SHORT]) == 0
    results = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    assert set(results) == {"panoptic_seg", "segm", "sem_seg"}
    assert evaluate(path, tmp_path / "model_final.pth", tmp_path / "again") == results


def evaluate(config: Path, checkpoint: Path, output: Path, *more: str) -> dict:
    """What train_net.py --eval-only measures."""
    arguments = ["--config-file", str(config), "--eval-only", f"train.output_dir={output}"]
    assert main([*arguments, f"train.init_checkpoint={checkpoint}", *more]) == 0
    return json.loads((output / "evaluation.json").read_text())["results"]


def test_eval_only_of_all_tasks(
    quickstart: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(quickstart / "datasets"))
    checkpoint = quickstart / "run" / "model_final.pth"
    config = ROOT / "configs" / "quickstart" / "mask2former_comer_digits.py"
    results = evaluate(config, checkpoint, tmp_path / "all")
    first = json.loads((quickstart / "run" / "evaluation.json").read_text())["results"]
    assert results == first
    # The same weights as a semantic model: at once as before, then by windows, scales and mirrors.
    config = config.with_name("mask2former_comer_digits_semantic.py")
    at_once = evaluate(config, checkpoint, tmp_path / "semantic")
    assert at_once == {"sem_seg": first["sem_seg"]}
    views = [
        "model.views.window=[96,96]",
        "model.views.stride=[64,64]",
        "model.views.scales=[0.75,1.0]",
        "model.views.flip=True",
    ]
    seen = []
    predict = Mask2Former._predict

    def remember(model: Mask2Former, inputs: list[dict]) -> list[dict]:
        seen.extend(tuple(record["image"].shape[-2:]) for record in inputs)
        return predict(model, inputs)

    monkeypatch.setattr(Mask2Former, "_predict", remember)
    by_views = evaluate(config, checkpoint, tmp_path / "views", *views)
    assert set(by_views) == {"sem_seg"}
    assert 0 <= by_views["sem_seg"]["mIoU"] <= 100
    # 4 scenes, each twice (mirrored), as one window of 96 px and, of 128 px, as 2 x 2.
    assert seen == [(96, 96)] * (4 * 2 * (1 + 4))
