"""comer-d2 eval is train_net.py --eval-only; and what the command says to mistakes."""

import json
from pathlib import Path

import pytest

from comer_d2.__main__ import COMMANDS, main
from comer_d2.d2 import cli
from tests.d2.untrained import DETECTOR, write_digits, write_run


def test_eval_is_eval_only(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", write_digits(tmp_path / "data"), DETECTOR)
    assert main(["eval", str(run), f"train.output_dir={tmp_path / 'a'}"]) == 0
    arguments = ["--config-file", str(run / "config.yaml"), "--eval-only"]
    arguments += [f"train.init_checkpoint={run / 'model_final.pth'}"]
    assert cli.main([*arguments, f"train.output_dir={tmp_path / 'b'}"]) == 0
    first, second = (
        json.loads((tmp_path / name / "evaluation.json").read_text())["results"] for name in "ab"
    )
    assert first == second and "AP" in first["bbox"]


def test_mistakes(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["eval", str(tmp_path / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("comer-d2 eval: error: ")
    assert main(["evaluate"]) == 2
    assert "there is no command 'evaluate'" in capsys.readouterr().err
    assert main([]) == 2


def test_the_commands_of_a_group(capsys: pytest.CaptureFixture) -> None:
    assert main(["data", "--help"]) == 0
    listed = [line.split()[1] for line in capsys.readouterr().out.splitlines()[2:]]
    assert listed == ["check", "show", "convert", "split"]
    assert main(["data"]) == 2
    assert main(["data", "nonsense"]) == 2
    assert "there is no command 'data nonsense'" in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(name: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*name.split(), "--help"])
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"usage: comer-d2 {name} ")
    assert "example" in printed
