"""The quickstart's Mask2Former as a user runs it, with a few tiny iterations, and its other tasks."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from comer_d2.d2.cli import main
from comer_d2.d2.modeling.mask2former import Mask2Former
from tests.d2.runs import LIMIT, ROOT, quickstart_tool, read_metrics

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
    output, _ = process.communicate(timeout=LIMIT)
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


def test_the_other_tasks_keep_the_data(quickstart: Path) -> None:
    folder = quickstart / "datasets" / "digits-panoptic"
    made = {path: path.stat().st_mtime_ns for path in folder.glob("*.json")}
    assert {"manifest.json", "panoptic_val.json"} <= {path.name for path in made}
    tool = quickstart_tool()
    assert tool.make_data(folder, tool.TASKS["instance"], 8, 4) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.json")} == made


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
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    options = ["--config-file", str(config), *SHORT, "train.checkpointer.period=2"]
    assert main([*options, f"train.output_dir={whole}"]) == 0
    results = json.loads((whole / "evaluation.json").read_text())["results"]
    assert set(results) == {measured}
    quickstart_task = quickstart_tool().TASKS[task]
    assert quickstart_task.config == config.name
    assert all(metric in results[group] for group, metric in quickstart_task.metrics.values())
    again = evaluate(config, whole / "model_final.pth", tmp_path / "again")
    assert again == results

    # As it was after two iterations, and resumed.
    resumed.mkdir()
    for name in ("config.yaml", "metrics.json", "model_0000001.pth"):
        shutil.copy(whole / name, resumed / name)
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    assert main([*options, "--resume", f"train.output_dir={resumed}"]) == 0
    weights = [torch.load(run / "model_final.pth")["model"] for run in (whole, resumed)]
    for name, value in weights[0].items():
        assert torch.equal(weights[1][name], value), name
    losses = [[line["total_loss"] for line in read_metrics(run)] for run in (whole, resumed)]
    assert losses[0] == losses[1]


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
