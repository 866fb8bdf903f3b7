"""Arguments and files of a run that are wrong: one error, before anything is computed."""

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from comer_d2.__main__ import main
from comer_d2.d2.commands.model import threshold_of
from comer_d2.d2.engine.replay import read_record
from comer_d2.d2.errors import UserError
from comer_d2.d2.export.hub import push
from comer_d2.d2.report.build import write_report
from comer_d2.d2.report.curves import read_series
from comer_d2.d2.visualization.sheet import save_picture
from tests.d2.runs import ROOT


@pytest.mark.parametrize("entry", ["cat", "cat=", "cat=high"])
def test_class_thresholds_without_a_number(entry: str) -> None:
    model: Any = SimpleNamespace(class_names=["cat", "dog"], tasks=("instance",))
    with pytest.raises(UserError, match=f"--class-threshold {entry}: .* cat=0.3"):
        threshold_of(Namespace(class_threshold=[entry], threshold=0.5), model)


def test_pictures_of_no_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match=r"sheet.abc': the name of a picture ends in \.png"):
        save_picture(Image.new("RGB", (2, 2)), tmp_path / "sheet.abc")
    assert main(["compare", "no_run", "--output", "sheet"]) == 2
    assert "'sheet': the name of a picture" in capsys.readouterr().err


def test_a_port_out_of_range(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "no_run", "--port", "99999"]) == 2
    assert "--port 99999" in capsys.readouterr().err


def test_ports_of_the_demo(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Gradio cannot serve on 0, and raises an OSError where a port is in use."""
    asked: list[int | None] = []

    def launch(*, server_port: int | None, **_: Any) -> None:
        asked.append(server_port)
        if server_port is not None:
            raise OSError(f"Cannot find empty port in range: {server_port}")

    model = SimpleNamespace(cfg=OmegaConf.create({}))
    monkeypatch.setattr("comer_d2.d2.commands.demo.model_of", lambda _: model)
    monkeypatch.setattr("comer_d2.d2.commands.demo.build_demo", lambda *_: SimpleNamespace(launch=launch))  # fmt: skip
    assert main(["demo", "no_run", "--port", "0"]) == 0
    assert main(["demo", "no_run", "--port", "7999"]) == 2
    assert "--port 7999: the port is in use" in capsys.readouterr().err
    assert asked == [None, 7999]


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "no_run", "film.mp4", "--seconds", "-1"),
        ("predict", "no_run", "film.mp4", "--seconds", "nan"),
        ("data", "show", "--config-file", "no.py", "--random", "-1"),
    ],
)
def test_numbers_out_of_range(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    assert main(arguments) == 2
    assert f"{arguments[-2]} {arguments[-1]}: " in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ("predict", "no_run", "{file}", "--output", "{file}"),
        ("predict", "no_run", "{file}", "--output", "{file}/found"),
        ("compare", "no_run", "--output", "{file}/sheet.png"),
        ("export", "no_run", "{file}/new/model.pt2", "--format", "torch-export"),
        ("export", "no_run", "{file}/shared", "--format", "hub"),
        ("data", "show", "--config-file", "no.py", "--output", "{file}/sheet.png"),
        ("data", "split", "no.json", "{file}/parts", "--images", "no_images"),
        ("data", "convert", "{file}", "{file}/converted", "--from", "voc"),
    ],
)
def test_outputs_that_cannot_be_written(
    arguments: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Found before the model or the data are read, which are not there either."""
    file = tmp_path / "photo.jpg"
    file.touch()
    assert main([word.format(file=file) for word in arguments]) == 2
    told = capsys.readouterr().err
    assert f"'{file}" in told and "cannot be written (Not a directory): choose another" in told
    assert file.read_bytes() == b"" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("results", [[1], {"bbox": 5}, {"bbox": {"AP": "high"}}])
def test_report_on_a_damaged_evaluation(tmp_path: Path, results: Any) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps({"results": results}))
    with pytest.raises(UserError, match="holds no evaluation"):
        write_report(OmegaConf.create({"train": {"output_dir": str(tmp_path)}}))


def test_curves_of_a_damaged_metrics_file(tmp_path: Path) -> None:
    (tmp_path / "metrics.json").write_bytes(
        b'\xff\n{"iteration": "x", "total_loss": 1}\n{"iteration": 3, "total_loss": 2}\n'
    )
    assert read_series(tmp_path / "metrics.json") == {"total_loss": ([3], [2.0])}


def test_a_damaged_record_of_a_step(tmp_path: Path) -> None:
    record: dict[str, Any] = {key: {} for key in ("losses", "grad_norms", "data", "model")}
    record |= {"reason": "NaN", "iteration": 3, "images": [], "random": [{}], "data": {"seed": 0}}
    record["loss_scale"] = 1.0
    torch.save(record, tmp_path / "step.pth")
    assert read_record(tmp_path / "step.pth") == record
    for key in record:
        torch.save(record | {key: -1}, tmp_path / "step.pth")
        with pytest.raises(UserError, match="is not the record of a step"):
            read_record(tmp_path / "step.pth")


def test_push_without_a_connection(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("model.safetensors", "config.yaml", "README.md"):
        (tmp_path / name).touch()
    client_error = huggingface_hub.errors.HfHubHTTPError.__bases__[0]

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise client_error("no connection")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(UserError, match="me/digits: no connection"):
        push(tmp_path, "me/digits")


def test_a_reader_that_leaves_ends_a_command_quietly() -> None:
    """As in `comer-d2 info | head -3`."""
    code = """
import sys, types
from comer_d2 import __main__ as comer_d2
sys.modules["long"] = types.SimpleNamespace(main=lambda argv, name: print("line\\n" * 10**6))
comer_d2.COMMANDS["long"] = ("long", "")
sys.exit(comer_d2.main(["long"]))
"""
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=-1, stderr=-1, cwd=ROOT, text=True) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 1
