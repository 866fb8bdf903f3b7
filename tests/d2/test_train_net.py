"""train_net.py as a user runs it: train, evaluate, interrupt, resume, make mistakes."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig
from detectron2.utils.events import JSONWriter
from omegaconf import OmegaConf

from comer_d2.d2.cli import main
from comer_d2.d2.engine import run as run_module
from comer_d2.d2.engine.config import TRAIN_DEFAULTS, load_config
from comer_d2.d2.engine.progress import EVALUATED
from tests.d2.runs import LIMIT, ROOT, TINY, read_metrics, start_train_net

MEASURED = ("time", "data_time", "eta_seconds", "images_per_second", "max_mem_mb", EVALUATED)


def losses(output: Path) -> list[dict[str, float]]:
    """metrics.json without what depends on the machine's speed."""
    return [
        {name: value for name, value in line.items() if name not in MEASURED}
        for line in read_metrics(output)
    ]


def run(*arguments: str) -> int:
    return main(["--config-file", TINY, *arguments])


def stopped_after_four(whole_run: Path, output: Path) -> Path:
    """A copy of the whole run as it was when its first checkpoint had just been written."""
    output.mkdir()
    for name in ("config.yaml", "metrics.json", "model_0000003.pth"):
        shutil.copy(whole_run / name, output / name)
    (output / "last_checkpoint").write_text("model_0000003.pth")
    return output


def test_a_run_leaves_checkpoints_metrics_and_results(whole_run: Path) -> None:
    files = {path.name for path in whole_run.iterdir()}
    assert {"model_0000003.pth", "model_final.pth", "model_best.pth", "config.yaml"} <= files
    assert any(name.startswith("events.out.tfevents") for name in files)
    assert not any(name.endswith(".tmp") for name in files)
    assert (whole_run / "last_checkpoint").read_text() == "model_final.pth"

    lines = read_metrics(whole_run)
    assert [line["iteration"] for line in lines] == list(range(8))
    assert {"total_loss", "loss_mask", "loss_rpn_cls", "lr", "max_mem_mb"} <= lines[-1].keys()
    assert {"eta_seconds", "images_per_second", "time", "bbox/AP", "segm/AP"} <= lines[-1].keys()
    assert lines[-1]["total_loss"] < lines[0]["total_loss"]
    assert lines[-1]["max_mem_mb"] > 100

    results = json.loads((whole_run / "evaluation.json").read_text())
    assert results["iteration"] == 7
    assert results["results"].keys() == {"bbox", "segm"}
    best = json.loads((whole_run / "model_best.json").read_text())
    assert best["metric"] == "bbox/AP"
    assert best["iteration"] == 7


def test_the_saved_config_is_the_one_that_ran_and_holds_no_weights(whole_run: Path) -> None:
    path = whole_run / "config.yaml"
    assert path.stat().st_size < 50_000
    cfg = LazyConfig.load(str(path))
    assert cfg.train.output_dir == str(whole_run)
    assert cfg.train.accumulation_steps == 1
    assert load_config(str(path)).model.roi_heads.num_classes == 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_equals_the_uninterrupted_one(
    whole_run: Path, tmp_path: Path, num_workers: int
) -> None:
    output = stopped_after_four(whole_run, tmp_path / "output")
    (output / ".half.tmp").write_bytes(b"of a write that was killed")
    workers = f"dataloader.train.num_workers={num_workers}"
    assert run("--resume", f"train.output_dir={output}", workers) == 0
    assert losses(output) == losses(whole_run)
    assert not list(output.glob(".*.tmp"))
    whole, resumed = (torch.load(o / "model_final.pth") for o in (whole_run, output))
    for name, value in whole["model"].items():
        assert torch.equal(resumed["model"][name], value), name
    assert torch.equal(resumed["random"][0]["torch"], whole["random"][0]["torch"])


def test_evaluation_alone_gives_the_runs_results(
    whole_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    weights = f"train.init_checkpoint={whole_run / 'model_final.pth'}"
    assert run("--eval-only", weights, f"train.output_dir={tmp_path}", "train.seed=7") == 0
    own, of_run = (
        json.loads((folder / "evaluation.json").read_text()) for folder in (tmp_path, whole_run)
    )
    assert own == of_run
    assert not (tmp_path / "config.yaml").exists()  # nor is a training's overwritten
    printed = capfd.readouterr().out
    assert "Evaluation results for bbox" in printed
    assert "Evaluation results for segm" in printed


def test_changed_optimizer_settings_apply_when_a_run_goes_on(
    whole_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    output = stopped_after_four(whole_run, tmp_path / "output")
    changed = ["optimizer.lr=1e-5", "optimizer.params.weight_decay_norm=0.03"]
    assert (
        run("--resume", f"train.output_dir={output}", *changed, "optimizer.betas=[0.8,0.99]") == 0
    )
    of_whole = {line["iteration"]: line["lr"] for line in read_metrics(whole_run)}
    for line in read_metrics(output)[4:]:
        assert line["lr"] == pytest.approx(of_whole[line["iteration"]] / 100)
    groups = torch.load(output / "model_final.pth")["trainer"]["optimizer"]["param_groups"]
    assert {tuple(group["betas"]) for group in groups} == {(0.8, 0.99)}
    assert 0.03 in {group["weight_decay"] for group in groups}
    printed = capfd.readouterr().out
    assert (
        "optimizer.lr is the config's from here on, not the checkpoint's: 0.001 -> 1e-05" in printed
    )
    assert "optimizer.betas is the config's" in printed


@pytest.mark.parametrize("stop_after", [4, 8])
def test_an_interrupted_evaluation_is_done_when_the_run_goes_on(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """It counts for metrics.json and for the best model as if it had never been interrupted."""
    evaluate = run_module.evaluate

    def with_signal(cfg, model, loader, iteration, interrupt):
        if iteration + 1 == stop_after:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(cfg, model, loader, iteration, interrupt)

    output = tmp_path / "output"
    options = [f"train.output_dir={output}", "train.eval_period=4"]
    monkeypatch.setattr(run_module, "evaluate", with_signal)
    assert run(*options) == 128 + signal.SIGTERM
    assert len(read_metrics(output)) == stop_after
    # Once more, in the evaluation that is made up for.
    assert run("--resume", *options) == 128 + signal.SIGTERM
    assert len(read_metrics(output)) == stop_after

    monkeypatch.setattr(run_module, "evaluate", evaluate)
    assert run("--resume", *options) == 0
    lines = losses(output)
    assert {"bbox/AP", "segm/AP"} <= lines[3].keys()
    whole = losses(whole_run)
    assert lines[7] == whole[7]
    for line, expected in zip(lines, whole, strict=True):
        assert line.items() >= expected.items()
    best = json.loads((output / "model_best.json").read_text())
    assert best["value"] == max(lines[3]["bbox/AP"], lines[7]["bbox/AP"])
    assert torch.load(output / "model_best.pth")["best"] == best


def test_a_run_killed_in_its_last_evaluation_has_a_best_model(
    whole_run: Path, tmp_path: Path
) -> None:
    """The state after kill -9: the last checkpoint is there, the last line of metrics.json is not."""
    output = tmp_path / "output"
    shutil.copytree(whole_run, output)
    for name in ("evaluation.json", "model_best.pth", "model_best.json"):
        (output / name).unlink()
    lines = (output / "metrics.json").read_text().splitlines(keepends=True)
    (output / "metrics.json").write_text("".join(lines[:-1]) + lines[-1][:30])
    assert run("--resume", f"train.output_dir={output}") == 0
    assert losses(output) == losses(whole_run)
    assert json.loads((output / "model_best.json").read_text())["iteration"] == 7


def test_a_finished_run_that_is_resumed_is_evaluated(whole_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "output"
    shutil.copytree(whole_run, output)
    (output / "evaluation.json").unlink()
    assert run("--resume", f"train.output_dir={output}") == 0
    assert (output / "evaluation.json").exists()
    assert losses(output) == losses(whole_run)


def test_a_run_that_is_resumed_has_not_gone_beyond_its_length(
    whole_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    shutil.copytree(whole_run, output)
    config = (output / "config.yaml").read_bytes()
    assert run("--resume", f"train.output_dir={output}", "train.max_iter=1") == 2
    assert "train.max_iter=1, but " in capfd.readouterr().err
    assert (output / "config.yaml").read_bytes() == config  # of the run that is not gone on with


def test_mixed_precision_clipping_and_accumulation_train_a_detector(
    tiny_coco: Path, tmp_path: Path
) -> None:
    options = ["train.amp.enabled=true", "train.clip_grad.max_norm=1.0", "train.max_iter=2"]
    options += ["train.accumulation_steps=2", f"train.output_dir={tmp_path / 'output'}"]
    assert run(*options) == 0
    last = read_metrics(tmp_path / "output")[-1]
    assert last["grad_norm"] > 0
    assert last["total_loss"] > 0


@pytest.mark.parametrize("config", ["tiny_proposals.py", "tiny_atss.py", "tiny_dino.py"])
def test_several_processes_train_and_evaluate_like_one(
    tiny_coco: Path, tmp_path: Path, config: str
) -> None:
    arguments = ["--config-file", str(ROOT / "tests/d2" / config)]
    output = f"train.output_dir={tmp_path / '2'}"
    process = start_train_net(*arguments, output, "--num-gpus", "2")
    assert main([*arguments, f"train.output_dir={tmp_path / '1'}"]) == 0  # meanwhile
    printed, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, printed
    one, two = (losses(tmp_path / processes) for processes in ("1", "2"))
    assert len(one) == len(two) == 4
    for a, b in zip(one, two):
        compared = [name for name in a if "loss" in name or name == "lr"]
        assert len(compared) >= 4
        for name in compared:
            # Losses of boxes are 1 - IoU, which float32 has to an ulp of 1 and no better.
            assert a[name] == pytest.approx(b[name], rel=1e-5, abs=1.2e-7), name
    evaluations = (json.loads((tmp_path / p / "evaluation.json").read_text()) for p in ("1", "2"))
    assert next(evaluations) == next(evaluations)


@pytest.mark.parametrize("config", [TINY, str(ROOT / "tests/d2/tiny_codino.py")])
def test_processes_of_torchrun_hold_the_same_weights(
    tiny_coco: Path, tmp_path: Path, config: str
) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--standalone", str(ROOT / "tests/d2/rank_agreement.py")]
    command += ["--config-file", config, f"train.output_dir={tmp_path / 'output'}"]
    command += ["train.max_iter=3", "train.accumulation_steps=2", "train.ema.enabled=true"]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert "weights agree among 2; checked [1, 0] times" in done.stdout, done.stdout + done.stderr
    state = torch.load(tmp_path / "output" / "model_final.pth")
    assert len(state["random"]) == 2  # one state per process
    assert (tmp_path / "output" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("signum", "flags", "exit_code"),
    [
        (signal.SIGINT, ["dataloader.train.num_workers=1"], 130),
        (signal.SIGTERM, ["--num-gpus", "2"], 143),
    ],
)
def test_a_signal_leaves_a_checkpoint_that_resumes(
    tiny_coco: Path, tmp_path: Path, signum: int, flags: list[str], exit_code: int
) -> None:
    output = tmp_path / "output"
    arguments = ["--config-file", TINY, *flags, f"train.output_dir={output}"]
    process = start_train_net(*arguments, "train.max_iter=100000")
    printed = []
    for line in process.stdout:
        printed.append(line)
        if "iter: 2/" in line:
            # To the whole session, as a terminal and a batch system do.
            os.killpg(process.pid, signum)
    assert process.wait(timeout=LIMIT) == exit_code, "".join(printed)
    assert "Traceback" not in "".join(printed)
    name = (output / "last_checkpoint").read_text()
    done = torch.load(output / name)["iteration"] + 1
    assert done >= 2
    assert f"stopped after {done} of 100000 iterations" in "".join(printed)
    assert "--resume" in printed[-1]
    if "--num-gpus" not in flags:
        assert run("--resume", f"train.output_dir={output}", f"train.max_iter={done + 1}") == 0
        assert [line["iteration"] for line in read_metrics(output)] == list(range(done + 1))


MISTAKES = {
    "a misspelt key": (["train.max_itr=3"], "did you mean 'train.max_iter'?"),
    "an unknown data set": (
        ["dataloader.train.dataset.names=tiny_cocco"],
        "'tiny_cocco' (dataloader.train.dataset.names) is not registered; did you mean 'tiny_coco'?",
    ),
    "a wrong number of classes": (
        ["model.roi_heads.num_classes=3"],
        "data set 'tiny_coco' has 2 classes, but model.roi_heads.num_classes is 3: "
        "set model.roi_heads.num_classes=2",
    ),
    "a missing checkpoint": (["train.init_checkpoint=no.pth"], "'no.pth' does not exist"),
    "nothing to evaluate": (["--eval-only"], "set train.init_checkpoint=PATH"),
    "a wrong argument": (
        ["+model.roi_heads.mask_head.conv_dim=8"],
        "got an unexpected keyword argument 'conv_dim'",
    ),
    "a batch that cannot be": (["dataloader.train.total_batch_size=0"], "total_batch_size=0"),
    "an unknown precision": (["train.amp.dtype=int8"], "use bfloat16 or float16"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_error(
    mistake: str, tiny_coco: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    arguments, message = MISTAKES[mistake]
    assert run(*arguments, f"train.output_dir={tmp_path / 'output'}") == 2
    printed = capfd.readouterr().err
    assert "train_net.py: error: " in printed
    assert message in printed
    assert "Traceback" not in printed


def test_a_checkpoint_that_does_not_fit_is_one_clear_error(
    whole_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    weights = f"train.init_checkpoint={whole_run / 'model_final.pth'}"
    wide = "model.roi_heads.mask_head.conv_dims=[16, 8]"
    for flags in (["--eval-only"], []):
        assert run(*flags, weights, wide, f"train.output_dir={tmp_path}") == 2
        printed = capfd.readouterr().err
        assert "does not fit the model" in printed
        wrong = r"roi_heads\.mask_head\.deconv\.weight.*\(16, 16, 2, 2\).*\(16, 8, 2, 2\)"
        assert re.search(wrong, printed)


def test_a_folder_with_a_run_in_it_is_not_overwritten(
    whole_run: Path, capfd: pytest.CaptureFixture
) -> None:
    assert run(f"train.output_dir={whole_run}") == 2
    assert "holds a run already" in capfd.readouterr().err


@pytest.mark.parametrize("flags", [["--resume"], ["--resume", "--eval-only"]])
def test_a_run_whose_last_checkpoint_has_no_name_is_not_begun_anew(
    flags: list[str], whole_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    output = stopped_after_four(whole_run, tmp_path / "output")
    (output / "last_checkpoint").unlink()
    assert run(*flags, f"train.output_dir={output}") == 2
    printed = capfd.readouterr().err
    assert f"{output}/last_checkpoint, which names the checkpoint to go on from, is gone" in printed
    assert "write model_0000003.pth into it" in printed
    assert len(read_metrics(output)) == 8


def test_a_disk_that_is_full_is_one_clear_error(
    whole_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    def write(writer: JSONWriter) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    output = stopped_after_four(whole_run, tmp_path / "output")
    monkeypatch.setattr(JSONWriter, "write", write)
    assert run("--resume", f"train.output_dir={output}") == 1
    printed = capfd.readouterr().err
    assert "No space left on device (" in printed
    assert f"MiB free in {output})" in printed
    assert "Traceback" not in printed


def test_a_folder_in_use_is_not_shared(
    whole_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    output = stopped_after_four(whole_run, tmp_path / "output")
    hold = (
        "import sys; from comer_d2.d2.engine.output_folder import locked\n"
        "with locked(sys.argv[1]): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold, str(output)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert other.stdout.readline() == b"held\n"
    before = (output / "metrics.json").read_bytes()
    assert run("--resume", f"train.output_dir={output}") == 2
    assert f"is in use by process {other.pid} on " in capfd.readouterr().err
    assert (output / "metrics.json").read_bytes() == before
    other.kill()
    other.wait()
    assert run("--resume", f"train.output_dir={output}", "train.max_iter=5") == 0


def test_an_output_folder_that_cannot_be_one(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "output"):
        assert run(f"train.output_dir={output}") == 2
        printed = capfd.readouterr().err
        assert f"train.output_dir='{output}' cannot be written" in printed
        assert "Traceback" not in printed


@pytest.mark.parametrize("damage", ["cut short", "a block of zeros"])
def test_a_damaged_last_checkpoint_names_an_older_one(
    damage: str, whole_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    output = tmp_path / "output"
    shutil.copytree(whole_run, output)
    whole = (output / "model_final.pth").read_bytes()
    middle = len(whole) // 2
    rest = b"" if damage == "cut short" else bytes(4096) + whole[middle + 4096 :]
    (output / "model_final.pth").write_bytes(whole[:middle] + rest)
    assert run("--resume", f"train.output_dir={output}") == 2
    printed = capfd.readouterr().err
    assert "checkpoint '" in printed
    assert "model_final.pth'" in printed
    assert f"write the name model_0000003.pth into {output}/last_checkpoint" in printed


WRONG_FORMS = {
    "optimizer": lambda state: state["trainer"].update(optimizer=[1, 2]),
    "optimizer's state": lambda state: state["trainer"]["optimizer"].update(state={0: {"step": 3}}),
    "iteration": lambda state: state["trainer"].update(iteration="four"),
    "an iteration before the first": lambda state: state["trainer"].update(iteration=-5),
    "a broken iteration": lambda state: state["trainer"].update(iteration=3.5),
    "random states": lambda state: state.update(random=[7]),
    "loader": lambda state: state.update(data=None),
}


@pytest.mark.parametrize("what", WRONG_FORMS)
def test_a_checkpoint_of_a_wrong_form_is_one_clear_error(
    what: str, whole_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    output = stopped_after_four(whole_run, tmp_path / "output")
    shutil.copy(output / "model_0000003.pth", output / "model_0000001.pth")
    state = torch.load(output / "model_0000003.pth")
    WRONG_FORMS[what](state)
    torch.save(state, output / "model_0000003.pth")
    assert run("--resume", f"train.output_dir={output}") == 2
    printed = capfd.readouterr().err
    assert f"checkpoint '{output}/model_0000003.pth'" in printed
    assert "write the name model_0000001.pth into" in printed
    assert "Traceback" not in printed


def test_settings_that_a_run_cannot_change_are_said(
    whole_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """And texts in metrics.json are no values to stop early by."""
    output = stopped_after_four(whole_run, tmp_path / "output")
    with (output / "metrics.json").open("a") as f:
        f.write('{"iteration": 3, "bbox/AP": "high"}\n{"iteration": 3, "bbox/AP": null}\n')
    shutil.copy(whole_run / "model_best.pth", output)
    options = ["train.seed=99", "train.best_checkpointer.mode=min"]
    options += [
        "train.eval_period=4",
        "train.early_stopping.patience=9",
        "train.early_stopping.metric=bbox/AP",
    ]
    assert run("--resume", f"train.output_dir={output}", *options) == 0
    printed = capfd.readouterr().out
    assert "train.seed=99 is not that of the run so far" in printed
    assert "best by bbox/AP (max); by bbox/AP (min) the best is one of the evaluations" in printed


def test_a_folder_in_place_of_a_file_is_one_clear_error(
    whole_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    output = stopped_after_four(whole_run, tmp_path / "output")
    (output / "metrics.json").unlink()
    (output / "metrics.json").mkdir()
    assert run("--resume", f"train.output_dir={output}") == 1
    printed = capfd.readouterr().err
    assert f"cannot write in train.output_dir: Is a directory: {output}/metrics.json (" in printed


def test_records_of_a_wrong_form_are_made_anew(
    whole_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    output = stopped_after_four(whole_run, tmp_path / "output")
    lines = (output / "metrics.json").read_bytes().splitlines(keepends=True)
    wrong = [b"[1]\n", b'"text"\n', b"\xff\xfe\n", b'{"iteration": "two"}\n', b'{"iteration": 1}']
    (output / "metrics.json").write_bytes(b"".join(lines[:4] + wrong))
    shutil.copy(whole_run / "model_best.pth", output)
    (output / "model_best.json").write_text("[]")
    assert run("--resume", f"train.output_dir={output}") == 0
    assert losses(output) == losses(whole_run)
    assert "metrics.json: dropped 5 lines that are no records" in capfd.readouterr().out
    best = json.loads((output / "model_best.json").read_text())
    assert best == json.loads((whole_run / "model_best.json").read_text())


def test_a_damaged_best_model_is_one_clear_error(
    whole_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    output = stopped_after_four(whole_run, tmp_path / "output")
    (output / "model_best.pth").write_bytes(b"nothing")
    assert run("--resume", f"train.output_dir={output}") == 2
    assert "model_best.pth' cannot be read" in capfd.readouterr().err
    shutil.copy(whole_run / "model_0000003.pth", output / "model_best.pth")
    assert run("--resume", f"train.output_dir={output}") == 2
    assert "model_best.pth' holds no record" in capfd.readouterr().err


def test_training_goes_on_from_given_weights(whole_run: Path, tmp_path: Path) -> None:
    weights = torch.load(whole_run / "model_final.pth")["model"]
    backbone = {k: v for k, v in weights.items() if k.startswith("backbone")}
    torch.save(backbone, tmp_path / "backbone.pth")
    options = [f"train.init_checkpoint={tmp_path / 'backbone.pth'}", "train.max_iter=1"]
    options += ["optimizer.lr=0.0", f"train.output_dir={tmp_path / 'output'}"]
    assert run(*options) == 0
    trained = torch.load(tmp_path / "output" / "model_final.pth")["model"]
    for name, value in backbone.items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(trained[name], value), name
    assert not torch.equal(
        trained["roi_heads.box_head.fc1.weight"], weights["roi_heads.box_head.fc1.weight"]
    )


def test_a_loss_that_is_not_finite_leaves_the_last_checkpoint(
    whole_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    output = stopped_after_four(whole_run, tmp_path / "output")
    wrong = "+model.roi_heads.mask_head.loss_weight=inf"
    assert run("--resume", f"train.output_dir={output}", wrong) == 1
    printed = capfd.readouterr().err
    assert "loss is not finite at iteration 4: loss_mask = inf" in printed
    assert (output / "last_checkpoint").read_text() == "model_0000003.pth"
    names = {path.name for path in output.glob("*.pth")}
    assert names == {"model_0000003.pth", "step_0000004.pth"}  # the last for comer-d2 replay


def test_without_a_data_set_it_says_what_is_missing(tmp_path: Path) -> None:
    config = str(ROOT / "configs/COCO/mask_rcnn_comer_s_1x.py")
    process = start_train_net(
        "--config-file", config, "--eval-only", DETECTRON2_DATASETS=str(tmp_path)
    )
    printed, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 2
    assert "data set 'coco_2017_val' is missing" in printed
    assert f"{tmp_path}/coco/annotations/instances_val2017.json does not exist" in printed
    assert "DETECTRON2_DATASETS" in printed
    assert "Traceback" not in printed


def test_the_common_config_has_every_key_of_the_engine() -> None:
    train = LazyConfig.load(str(ROOT / "configs/common/train.py")).train
    for key, value in TRAIN_DEFAULTS.items():
        assert OmegaConf.to_container(OmegaConf.create({"v": train[key]}))["v"] == value, key
