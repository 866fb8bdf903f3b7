"""The segmentation quickstart as a user runs it, with a few tiny iterations, and its other tasks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from comer_d2.d2.engine.main import main
from comer_d2.d2.mask_former import Mask2Former

ROOT = Path(__file__).parents[2]
SHORT = [
    "train.max_iter=3",
    "train.log_period=1",
    "train.eval_period=0",
    "dataloader.train.total_batch_size=2",
    "dataloader.train.num_workers=0",
]


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what tools/quickstart_seg.py made of 8 scenes: datasets and run."""
    folder = tmp_path_factory.mktemp("quickstart")
    command = [sys.executable, ROOT / "tools" / "quickstart_seg.py", "--output", folder / "run"]
    command += ["--train-images", "8", "--val-images", "4", *SHORT]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(folder / "datasets")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_one_model_for_all_tasks(quickstart: Path) -> None:
    run = quickstart / "run"
    results = json.loads((run / "evaluation.json").read_text())["results"]
    assert set(results) == {"panoptic_seg", "segm", "sem_seg"}
    assert Image.open(run / "predictions.png").size[0] > 600
    record = json.loads((run / "quickstart.json").read_text())["result"]
    assert record["PQ"] == results["panoptic_seg"]["PQ"]


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
