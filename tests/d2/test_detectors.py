"""The quickstart's digits by every detector of boxes: resumed, predicted, drawn, learnt."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from comer_d2.d2.cli import main
from comer_d2.d2.comparison import compare
from comer_d2.d2.data.digits import DigitsSpec, make_digits
from comer_d2.d2.predictor import load
from tests.d2.runs import ROOT, read_metrics

# Detector -> iterations, and the box AP that it has to reach: at most 60 % of what was measured.
LEARN = {
    "dino": (500, 6.5),
    "faster_rcnn": (150, 3.5),
    "atss": (120, 4.5),
    "gfl": (120, 4.5),
    "codino": (300, 6.0),
}
DETECTORS = ["cascade_rcnn", *LEARN]
_BOX = "model.roi_heads.box_predictor"
# Where the threshold of the scores is.
SCORES = {
    "faster_rcnn": [_BOX],
    "cascade_rcnn": [f"{_BOX}s.{i}" for i in range(3)],
    "atss": ["model"],
    "gfl": ["model"],
    # All are kept.
    "dino": [],
    "codino": [],
}


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    datasets = tmp_path_factory.mktemp("datasets")
    make_digits(datasets / "digits", DigitsSpec(train_images=8, val_images=3), progress=False)
    return datasets


def config(detector: str) -> str:
    return str(ROOT / f"configs/quickstart/{detector}_comer_digits.py")


def train(detector: str, output: Path, *arguments: str) -> None:
    assert main(["--config-file", config(detector), *arguments, f"train.output_dir={output}"]) == 0


@pytest.mark.parametrize("backbone", ["swin", "comer_swin", "convnext", "vit"])
def test_mask_rcnn_on_other_backbones(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(few_digits))
    path = str(ROOT / f"configs/quickstart/mask_rcnn_{backbone}_digits.py")
    options = ["train.max_iter=2", "train.eval_period=0", f"train.output_dir={tmp_path}"]
    options += ["dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0"]
    assert main(["--config-file", path, *options]) == 0
    results = json.loads((tmp_path / "evaluation.json").read_text())["results"]
    assert set(results) == {"bbox", "segm"}
    assert load(tmp_path)(str(few_digits / "digits/val/00001.png")) is not None


@pytest.mark.parametrize("detector", DETECTORS)
def test_resumes_exactly_predicts_and_draws(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, detector: str
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(few_digits))
    options = ["train.max_iter=4", "train.eval_period=0", "train.checkpointer.period=2"]
    options += ["train.checkpointer.max_to_keep=5", "train.log_period=1"]
    options += ["dataloader.train.total_batch_size=2", "dataloader.train.num_workers=0"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    train(detector, whole, *options)
    resumed.mkdir()
    for name in ("config.yaml", "metrics.json", "model_0000001.pth"):
        shutil.copy(whole / name, resumed / name)
    (resumed / "last_checkpoint").write_text("model_0000001.pth")
    train(detector, resumed, "--resume", *options)
    weights = [torch.load(folder / "model_final.pth")["model"] for folder in (whole, resumed)]
    for name, value in weights[0].items():
        assert torch.equal(weights[1][name], value), name
    losses = [[line["total_loss"] for line in read_metrics(run)] for run in (whole, resumed)]
    assert losses[0] == losses[1]

    # The run's own config.yaml, with every detection kept.
    keep = [f"{key}.test_score_thresh=0.0" for key in SCORES[detector]]
    model = load(whole / "model_final.pth", overrides=keep)
    result = model(few_digits / "digits/val/00001.png", threshold=0.0)
    assert model.class_names == list("0123456789")
    assert len(result) > 0 and result.masks is None
    assert [entry["score"] for entry in result.to_coco(1)] == result.scores.tolist()
    pairs = compare(model, "digits_val", count=2, progress=False)
    assert len(pairs) == 2 and pairs[0][1].size == (256, 256)


def box_ap(output: Path) -> float:
    """What the last evaluation of a run gave."""
    results = json.loads((output / "evaluation.json").read_text())["results"]
    assert results.keys() == {"bbox"}
    return results["bbox"]["AP"] or 0.0  # None: nothing was found


@pytest.fixture(scope="module")
def backbone(learnt_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the weights of a backbone that has learnt under Cascade R-CNN."""
    path = tmp_path_factory.mktemp("backbone") / "backbone.pth"
    weights = torch.load(learnt_run / "model_final.pth")["model"]
    prefix = "backbone.bottom_up."
    torch.save(
        {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}, path
    )
    return path


@pytest.mark.slow
def test_cascade_rcnn_learns_the_digits(learnt_run: Path) -> None:
    assert box_ap(learnt_run) >= 9.0


@pytest.mark.slow
@pytest.mark.parametrize("detector", LEARN)
def test_learns_the_digits(
    backbone: Path,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    detector: str,
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(digits))
    iterations, floor = LEARN[detector]
    options = [f"train.max_iter={iterations}", "train.eval_period=0", "train.report=False"]
    if detector != "dino":  # from random weights
        options.append(f"train.init_checkpoint={backbone}")
    train(detector, tmp_path / "run", *options)
    assert box_ap(tmp_path / "run") >= floor
