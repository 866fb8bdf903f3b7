"""Runs whose length, weights and end are others than a fixed number of iterations."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage

from comer_d2.d2.cli import main
from comer_d2.d2.engine.best_model import BestModel
from comer_d2.d2.engine.checkpoint import CheckpointFolder
from comer_d2.d2.engine.config import load_config
from comer_d2.d2.engine.hooks import Evaluation, Reports
from comer_d2.d2.predictor import Predictor
from tests.d2.runs import TINY, read_metrics


def run(*arguments: str) -> int:
    return main(["--config-file", TINY, *arguments])


def test_a_run_in_epochs_saves_what_it_derived(
    tiny_coco: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    epochs = ["train.epochs=3.5", "train.lr_batch_size=8", f"train.output_dir={tmp_path}"]
    assert run(*epochs) == 0
    printed = capfd.readouterr().out
    assert "train.epochs=3.5 x 6 images / 2 an update = 11 iterations" in printed
    assert "Learning rate 0.0005: 0.001, which is for 8 images an update" in printed
    assert "1 more iterations of" in printed  # after ten
    assert [line["iteration"] for line in read_metrics(tmp_path)] == list(range(11))
    cfg = load_config(str(tmp_path / "config.yaml"))
    assert (cfg.train.max_iter, cfg.train.checkpointer.period) == (11, 6)
    assert cfg.optimizer.lr == pytest.approx(5e-4)
    # That config goes on as the same run.
    assert main(["--config-file", str(tmp_path / "config.yaml"), "--resume"]) == 0
    assert "All 11 iterations are done already" in capfd.readouterr().out


def test_the_average_is_saved_evaluated_resumed_and_predicts(
    tiny_coco: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    ema = ["train.ema.enabled=true", "train.eval_period=4"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert run(*ema, f"train.output_dir={whole}") == 0
    parts.mkdir()
    for name in ("config.yaml", "metrics.json", "model_0000003.pth"):
        shutil.copy(whole / name, parts / name)
    (parts / "last_checkpoint").write_text("model_0000003.pth")
    assert run(*ema, "--resume", f"train.output_dir={parts}") == 0

    final, resumed = (torch.load(folder / "model_final.pth") for folder in (whole, parts))
    for name, value in final["ema"].items():
        assert torch.equal(resumed["ema"][name], value), name
    assert not all(torch.equal(final["ema"][n], v) for n, v in final["model"].items())
    best = torch.load(whole / "model_best.pth")
    if best["iteration"] == 7:
        for name, value in best["model"].items():
            assert torch.equal(final["ema"][name], value), name

    # What is evaluated alone and what predicts is the average, too.
    capfd.readouterr()
    weights = f"train.init_checkpoint={whole / 'model_final.pth'}"
    assert run(*ema, "--eval-only", weights, f"train.output_dir={tmp_path / 'eval'}") == 0
    assert "its moving average of the weights is used" in capfd.readouterr().out
    evaluations = (whole / "evaluation.json", tmp_path / "eval" / "evaluation.json")
    assert len({path.read_text() for path in evaluations}) == 1
    predictor = Predictor(load_config(str(whole / "config.yaml")), whole / "model_final.pth")
    name = "backbone.fpn_lateral2.weight"
    assert torch.equal(predictor.model.state_dict()[name], final["ema"][name])


def test_a_run_that_gets_no_better_ends_and_stays_ended(
    tiny_coco: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    # No evaluation is better than the first by 1000 points.
    stopping = ["train.eval_period=2", "train.early_stopping.min_delta=1000"]
    patience = "train.early_stopping.patience={}"
    output = f"train.output_dir={tmp_path}"
    assert run(*stopping, patience.format(2), output, "train.max_iter=100") == 0
    assert "The run ends here: bbox/AP got no better" in capfd.readouterr().out
    assert torch.load(tmp_path / "model_final.pth")["iteration"] == 5  # evaluated after 2, 4 and 6
    assert json.loads((tmp_path / "evaluation.json").read_text())["iteration"] == 5
    assert (tmp_path / "last_checkpoint").read_text() == "model_final.pth"

    assert run(*stopping, patience.format(2), output, "train.max_iter=100", "--resume") == 0
    assert len(read_metrics(tmp_path)) == 6
    assert run(*stopping, patience.format(3), output, "train.max_iter=100", "--resume") == 0
    assert len(read_metrics(tmp_path)) == 8  # one more evaluation


def test_a_run_without_a_best_model_has_a_report_at_its_end(tmp_path: Path) -> None:
    best = BestModel(
        CheckpointFolder(str(tmp_path)), "bbox/APP"
    )  # no such metric; NaN does the same
    evaluation = Evaluation(1, lambda iteration: {"bbox": {"AP": 1.0}}, 2, best)
    model = torch.nn.Linear(1, 1)
    with EventStorage(0) as storage:
        evaluation.trainer = SimpleNamespace(iter=0, interrupted_by=0, bare_model=model, storage=storage)  # fmt: skip
        evaluation.after_step()
        assert not evaluation.report_due
        evaluation.trainer.iter = 1
        evaluation.after_step()
    assert evaluation.report_due


def test_the_curves_of_a_report_go_on_to_the_end_of_the_run() -> None:
    done: list[str] = []
    evaluation = SimpleNamespace(report_due=True)
    reports = Reports(evaluation, lambda: done.append("write"), lambda: done.append("update"))
    reports.after_step()
    reports.after_train()
    assert done == ["write"]  # of the last step
    reports.after_step()
    reports.after_train()
    assert done == ["write", "update"]  # another step, and no better model
    evaluation.report_due = True
    reports.after_train()
    assert done == ["write", "update", "write"]  # of an evaluation without a step


def test_pictures_of_predictions_are_logged(tiny_coco: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert (
        run(f"train.output_dir={tmp_path}", "train.max_iter=2", "train.loggers=[csv,tensorboard]")
        == 0
    )
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["images"]) == [f"predictions/{n}" for n in range(4)]
    assert events.Images("predictions/0")[0].step == 1
    header = (tmp_path / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"iteration", "total_loss", "bbox/AP"} <= set(header)
