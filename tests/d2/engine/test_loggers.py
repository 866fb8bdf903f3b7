"""Figures and pictures in every logger of `train.loggers`, read back from where it keeps them."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import numpy as np
import pytest
from detectron2.utils.events import EventStorage, JSONWriter

from comer_d2.d2.engine.config import load_config
from comer_d2.d2.engine.loggers import check_loggers, make_loggers
from comer_d2.d2.errors import UserError
from tests.d2.runs import LIMIT, ROOT


def write_three(folder: Path, loggers: list[str], start: int = 0) -> None:
    """Three iterations of a loss, an evaluation with a picture after the last."""
    writers = [
        JSONWriter(str(folder / "metrics.json")),
        *make_loggers(loggers, str(folder), window=1, start_iter=start),
    ]
    with EventStorage(start) as storage:
        for iteration in range(start, start + 3):
            storage.iter = iteration
            storage.put_scalar("total_loss", 5.0 - iteration)
            if iteration == start + 2:
                storage.put_scalar("bbox/AP", 10.0 + iteration, smoothing_hint=False)
                picture = np.zeros((3, 6, 8), np.uint8)
                picture[0] = 255
                storage.put_image("predictions/0", picture)
            for writer in writers:
                writer.write()
        for writer in writers:
            writer.close()


def test_csv_is_metrics_json_as_a_table(tmp_path: Path) -> None:
    write_three(tmp_path, ["csv"])
    write_three(tmp_path, ["csv"], start=3)  # goes on
    with open(tmp_path / "metrics.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    lines = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert len(rows) == len(lines) == 6
    assert rows[0].keys() == {"iteration", "total_loss", "bbox/AP"}
    for row, line in zip(rows, lines):
        assert {key: float(value) for key, value in row.items() if value} == line


def test_tensorboard_has_figures_and_pictures(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write_three(tmp_path, ["tensorboard"])
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.value for event in events.Scalars("total_loss")] == [5.0, 4.0, 3.0]
    (picture,) = events.Images("predictions/0")
    assert (picture.step, picture.width, picture.height) == (2, 8, 6)


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for wait in ("WANDB__SERVICE_WAIT", "WANDB_INIT_TIMEOUT"):  # seconds for its own process
        monkeypatch.setenv(wait, str(LIMIT))
    write_three(tmp_path, ["wandb", "tensorboard"])
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    expected = (b"total_loss", b"bbox/AP", b"predictions/0")

    def written() -> bool:
        record = b"".join(path.read_bytes() for path in folder.glob("*.wandb"))
        return all(text in record for text in expected)

    deadline = time.monotonic() + LIMIT  # its own process writes it, soon after the run is finished
    while not written() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert written()
    assert len(list(folder.rglob("*.png"))) == 1
    number = (tmp_path / "wandb_run.txt").read_text().strip()
    assert number in folder.name

    write_three(tmp_path, ["wandb"], start=3)  # the same run there
    # offline-run-TIME-NUMBER, and "-1" after it where both began within one second
    names = [f.name for f in (tmp_path / "wandb").glob("offline-run-*")]
    assert [name.split("-")[3] for name in names] == [number] * 2


def test_mlflow_without_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")  # that it is needed nobody has to know
    write_three(tmp_path, ["mlflow"])
    write_three(tmp_path, ["mlflow"], start=3)
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("comer_d2")
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "total_loss")
    assert [(m.step, m.value) for m in history] == [(i, 5.0 - i) for i in range(6)]
    names = {file.path for file in client.list_artifacts(run.info.run_id, "predictions")}
    assert names == {"predictions/0_0000002.png", "predictions/0_0000005.png"}
    assert run.info.status == "FINISHED"


def test_mlflow_takes_any_class_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")
    (writer,) = make_loggers(["mlflow"], str(tmp_path), window=1, start_iter=0)
    values = {
        "bbox/AP-<5 mm": 1.0,
        "bbox/AP->5 mm": 2.0,
        'bbox/AP-a/"b"': 3.0,
        "bbox/AP-白血球": 4.0,
    }
    with EventStorage(0) as storage:
        storage.put_scalars(**values, smoothing_hint=False)
        writer.write()
    number = (tmp_path / "mlflow_run.txt").read_text().strip()
    kept = mlflow.MlflowClient().get_run(number).data.metrics
    assert kept == {
        "bbox/AP-_5 mm": 1.0, "bbox/AP-_5 mm_": 2.0, "bbox/AP-a__b_": 3.0, "bbox/AP-白血球": 4.0,
    }  # fmt: skip


def test_a_service_that_does_not_start_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nothing:here")
    with pytest.raises(
        UserError, match=r"names mlflow, which does not start: .*=file:FOLDER keeps"
    ):
        make_loggers(["mlflow"], str(tmp_path), window=1, start_iter=0)


def test_a_service_that_fails_later_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'mlruns'}")

    def refuse(*args: object, **kwargs: object) -> None:
        raise ConnectionError("the server is gone")

    monkeypatch.setattr(mlflow.MlflowClient, "log_metric", refuse)
    write_three(tmp_path, ["mlflow", "csv"])
    assert caplog.text.count("the server is gone") == 1
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 4


def test_mistakes_are_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"names 'wandbb': use any of tensorboard, csv, wandb"):
        check_loggers(["csv", "wandbb"])
    monkeypatch.setattr("comer_d2.d2.engine.loggers.find_spec", lambda name: None)
    with pytest.raises(UserError, match="wandb, which is not installed: pip install wandb"):
        check_loggers(["wandb"])


def test_one_logger_needs_no_brackets() -> None:
    config = str(ROOT / "configs/custom/mask_rcnn_comer_t.py")
    assert load_config(config, ["train.loggers=csv"]).train.loggers == ["csv"]
