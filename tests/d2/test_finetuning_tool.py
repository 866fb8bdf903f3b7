"""The ladders of docs/FINETUNING.md: every row has a folder and a config that train_net.py takes."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import DictConfig

from comer_d2.d2.engine.config import load_config
from tests.d2.runs import ROOT

spec = importlib.util.spec_from_file_location("finetuning", ROOT / "tools" / "finetuning.py")
script = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)


def _vit_of(cfg: DictConfig) -> DictConfig:
    backbone = cfg.model.backbone
    return backbone.get("net") or backbone.get("bottom_up", backbone).vit


@pytest.mark.parametrize("task", script.TASKS.values(), ids=list(script.TASKS))
def test_folders_are_apart_and_overrides_hold_them(task: "script.Task") -> None:
    rows = script.recipe_rows(task) | script.paper_rows(task)
    folders = [script.folder_of(row, seed) for row in rows for seed in (0, 1)]
    assert len(set(folders)) == len(folders) == 2 * len(rows)
    configs = {}
    for row, folder in zip(rows, folders[::2], strict=True):
        config, pretrained, changes = rows[row]
        output = f"train.output_dir=out/{folder}"
        cfg = load_config(script.path_of(config), [*changes, output])
        assert cfg.train.output_dir == f"out/{folder}"
        with torch.device("meta"):
            instantiate(_vit_of(cfg))
        cfg.train.output_dir = pretrained
        configs[row] = str(cfg)
    assert len(set(configs.values())) == len(rows)  # each row is another run
    assert all(key in cfg.dataset for key in task.files)


def test_the_documented_commands_run_their_ladders(monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    for target, arguments in re.findall(r'^make (\w+) ARGS="(.*?)"', script.__doc__, re.MULTILINE):
        make = ["make", "-n", target, "PYTHON=python", f"ARGS={arguments}"]
        # `make test` runs this as well, and a make within make says where it enters and leaves
        environment = {
            key: value for key, value in os.environ.items() if key not in ("MAKEFLAGS", "MAKELEVEL")
        }
        last = subprocess.check_output(make, cwd=ROOT, env=environment, text=True).splitlines()[-1]
        python, tool, *arguments = shlex.split(last)
        assert (python, tool) == ("python", "tools/finetuning.py")
        monkeypatch.setattr("sys.argv", [tool, *arguments])
        started.append(script.parse_arguments())
    assert [(args.task, len(args.rows), args.seeds) for args in started] == [
        ("instances", 10, [0, 1]),
        ("semantic", 10, [0, 1]),
        ("boxes", 4, [0, 1, 2]),
    ]


def test_a_pretrained_row_asks_for_its_vit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["finetuning.py", "--task", "semantic", "--data", "camvid"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit):
        script.parse_arguments()
    assert "--vit: 'pretrained, one rate' starts from a pretrained ViT-S" in capsys.readouterr().err
    monkeypatch.setattr("sys.argv", [*arguments, "--rows", "scratch, one rate"])
    assert script.parse_arguments().rows.keys() == {"scratch, one rate"}


def set_arguments(monkeypatch: pytest.MonkeyPatch, output: Path, *others: str) -> None:
    """The paper's ladder on the data of this folder, with a ViT called none."""
    line = ["--ladder", "paper", "--task", "boxes", "--data", ".", "--vit", "none", "--output"]
    monkeypatch.setattr("sys.argv", ["finetuning.py", *line, str(output), *others])


def test_runs_of_other_data_weights_or_changes_are_not_taken_over(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def start(*others: str) -> None:
        set_arguments(monkeypatch, tmp_path, *others)
        script.claim_folder(script.parse_arguments())

    start("optimizer.lr=1e3")  # a mistake that was seen before a run began
    start("optimizer.lr=1e-3")
    run = tmp_path / "boxes_paper_192px_300" / "row_0"
    run.mkdir()
    (run / "config.yaml").touch()
    start("optimizer.lr=1e-3", "--seeds", "3")  # goes on
    for others, told in (
        (
            ["optimizer.lr=1e-3", "--data", ".."],
            rf"--data {re.escape(str(Path().resolve()))}, now ",
        ),
        (["optimizer.lr=1e-3", "--vit", "timm:other"], "--vit none, now timm:other"),
        (["optimizer.lr=2e-3"], r"changes \['optimizer.lr=1e-3'\], now"),
    ):
        with pytest.raises(SystemExit, match=told):
            start(*others)
    (run.parent / "ladder.json").unlink()
    with pytest.raises(SystemExit, match="not written down"):
        start("optimizer.lr=1e-3")


def test_a_run_that_was_cut_off_after_an_evaluation_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_arguments(monkeypatch, tmp_path, "train.eval_period=100")
    args = script.parse_arguments()
    row = "+ CTI to V"
    folder = args.output / script.folder_of(row, 0)
    folder.mkdir(parents=True)
    evaluation = {"iteration": 99, "results": {"bbox": {"AP": 1.0}}}
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    started = []

    def fail(command: list[str]) -> subprocess.CompletedProcess:
        started.append(command)
        return subprocess.CompletedProcess(command, 2)

    monkeypatch.setattr(subprocess, "run", fail)
    with pytest.raises(SystemExit, match=r"seed 0: train_net\.py ended with 2"):
        script.run(args, row, 0)
    assert "--resume" in started[0] and started[0][-1] == "train.eval_period=100"
    (folder / "evaluation.json").write_text(json.dumps(evaluation | {"iteration": 299}))
    assert script.run(args, row, 0) == [1.0]
    assert len(started) == 1


def test_the_table_has_mean_and_deviation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_arguments(monkeypatch, tmp_path)
    runs = tmp_path / "boxes_paper_192px_300"
    for row in script.paper_rows(script.TASKS["boxes"]):
        for seed in (0, 1, 2):
            folder = runs / script.folder_of(row, seed)
            folder.mkdir(parents=True)
            score = 10.0 + 2 * seed
            evaluated = {"iteration": 299, "results": {"bbox": {"AP": score}}}
            (folder / "evaluation.json").write_text(json.dumps(evaluated))
            (folder / "metrics.json").write_text('{"iteration": 19, "total_loss": 1.5}\n')
    script.main()
    table = capsys.readouterr().out
    assert "| | seed 0 | seed 1 | seed 2 | mean ± deviation |" in table
    assert "| + CTI to C: ViT-CoMer | 10.0 | 12.0 | 14.0 | 12.0 ± 2.0 |" in table
    assert (runs / "table.md").read_text().strip() == table.strip()
