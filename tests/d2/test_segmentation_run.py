"""train_net.py on label maps in folders: trains, evaluates, and says which file is wrong."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from comer_d2.d2.cli import main
from comer_d2.d2.comparison import compare
from comer_d2.d2.data.check import find_wrong_records
from comer_d2.d2.engine.config import load_config
from comer_d2.d2.predictor import Predictor

TINY = str(Path(__file__).with_name("tiny_upernet.py"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dark pages, 96 x 64, with a bright square."""
    root = tmp_path_factory.mktemp("label_maps")
    rng = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 3)):
        for kind in ("images", "masks"):
            (root / split / kind / "a").mkdir(parents=True)
        for number in range(count):
            image = rng.integers(0, 60, (64, 96, 3), np.uint8)
            labels = np.zeros((64, 96), np.uint8)
            y, x = rng.integers(0, 30), rng.integers(0, 60)
            image[y : y + 30, x : x + 30] += 180
            labels[y : y + 30, x : x + 30] = 1
            labels[:2] = 255
            Image.fromarray(image).save(root / split / "images" / "a" / f"{number}.jpg")
            Image.fromarray(labels).save(root / split / "masks" / "a" / f"{number}.png")
    return root


def overrides(data: Path) -> list[str]:
    return [
        f"dataset.{split}_{kind}={data / split / kind}"
        for split in ("train", "val")
        for kind in ("images", "masks")
    ]


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "output"
    code = main(["--config-file", TINY, *overrides(data), f"train.output_dir={output}"])
    assert code == 0
    return output


def test_a_run_trains_and_measures(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.json").read_text().splitlines()]
    assert {"loss_sem_seg", "loss_auxiliary", "sem_seg/mIoU"} <= lines[-1].keys()
    assert lines[-1]["loss_sem_seg"] < lines[0]["loss_sem_seg"]
    results = json.loads((run / "evaluation.json").read_text())["results"]["sem_seg"]
    assert 0 <= results["mIoU"] <= 100
    assert results["IoU-never"] is None
    assert (run / "model_best.pth").exists()


def test_eval_only_gives_the_same(run: Path, data: Path, tmp_path: Path) -> None:
    arguments = [*overrides(data), f"train.output_dir={tmp_path}"]
    arguments += ["--eval-only", f"train.init_checkpoint={run / 'model_final.pth'}"]
    assert main(["--config-file", TINY, *arguments]) == 0
    first, second = (
        json.loads((folder / "evaluation.json").read_text())["results"]["sem_seg"]
        for folder in (run, tmp_path)
    )
    assert first == second


def test_predicts_and_draws(run: Path, data: Path) -> None:
    cfg = load_config(str(run / "config.yaml"))
    predictor = Predictor(cfg, run / "model_final.pth")
    assert predictor.class_names == ["page", "square", "never"]
    labels = predictor(data / "val" / "images" / "a" / "0.jpg").label_map
    assert labels.shape == (64, 96)
    pairs = compare(predictor, "custom_val", count=2, picture_side=192, progress=False)
    assert [picture.size for pair in pairs for picture in pair] == [(192, 128)] * 4


def test_a_wrong_label_is_named_before_training(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    path = data / "train" / "masks" / "a" / "2.png"
    before = path.read_bytes()
    Image.fromarray(np.full((64, 96), 3, np.uint8)).save(path)
    try:
        arguments = [*overrides(data), f"train.output_dir={tmp_path / 'output'}"]
        assert main(["--config-file", TINY, *arguments]) == 2
        assert f"{path}: label 3 is no class" in capfd.readouterr().err
        assert not (tmp_path / "output").exists()
    finally:
        path.write_bytes(before)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_that_is_damaged_after_the_check_stops_with_its_name(
    data: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    path = data / "train" / "masks" / "a" / "2.png"
    before = path.read_bytes()

    def damage(*args: object) -> None:
        Image.fromarray(np.full((64, 96), 3, np.uint8)).save(path)

    monkeypatch.setattr("comer_d2.d2.engine.run.log_dataset", damage)
    try:
        arguments = [*overrides(data), f"train.output_dir={tmp_path}"]
        arguments.append(f"dataloader.train.num_workers={workers}")
        assert main(["--config-file", TINY, *arguments]) == 2
        message = capfd.readouterr().err.splitlines()[-1]
        assert f"train_net.py: error: {path}: label 3 is no class" in message
        (problem,) = find_wrong_records("custom_train", progress=False)
        assert "2.png: label 3 is no class" in problem
    finally:
        path.write_bytes(before)


def test_a_count_of_classes_that_disagrees(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    arguments = [
        *overrides(data),
        f"train.output_dir={tmp_path}",
        "model.sem_seg_head.num_classes=5",
    ]
    assert main(["--config-file", TINY, *arguments]) == 2
    assert "set model.sem_seg_head.num_classes=3" in capfd.readouterr().err


def test_one_image_a_process_is_told_what_to_do(
    data: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    arguments = [*overrides(data), f"train.output_dir={tmp_path / 'one'}", "train.max_iter=1"]
    arguments.append("dataloader.train.total_batch_size=1")
    assert main(["--config-file", TINY, *arguments]) == 2
    printed = capfd.readouterr().err
    assert "total_batch_size=1 is 1 image" in printed
    assert "or model.sem_seg_head.norm_layer.norm=GN" in printed
    assert not (tmp_path / "one" / "metrics.json").exists()  # before training
    wider = ["model.sem_seg_head.channels=64", "model.sem_seg_head.auxiliary_channels=32"]
    arguments += ["model.sem_seg_head.norm_layer.norm=GN", f"train.output_dir={tmp_path / 'gn'}"]
    assert main(["--config-file", TINY, *arguments, *wider]) == 0
