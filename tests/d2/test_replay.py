"""A step that goes wrong leaves a file, and `comer-d2 replay` computes the same step again."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from detectron2.modeling.roi_heads import StandardROIHeads

from comer_d2.__main__ import main as comer_d2
from comer_d2.d2.cli import main
from comer_d2.d2.commands.replay import side_by_side
from comer_d2.d2.engine.config import load_config
from comer_d2.d2.engine.replay import read_record, replay
from comer_d2.d2.engine.step_record import StepRecorder
from comer_d2.d2.errors import UserError
from tests.d2.runs import TINY, read_metrics


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fourth step's box losses are a hundred times too large."""
    calls = []
    losses = StandardROIHeads._forward_box

    def spoil(self, *args, **kwargs):
        result = losses(self, *args, **kwargs)
        if self.training:
            calls.append(0)
            if len(calls) == 4:
                return {name: loss * float("nan") for name, loss in result.items()}
        return result

    monkeypatch.setattr(StandardROIHeads, "_forward_box", spoil)


def test_a_loss_that_is_not_finite_can_be_computed_again(
    tiny_coco: Path, tmp_path: Path, spoilt: None, capfd: pytest.CaptureFixture
) -> None:
    output = tmp_path / "output"
    accumulation = "train.accumulation_steps=1"
    assert main(["--config-file", TINY, f"train.output_dir={output}", accumulation]) == 1
    (path,) = output.glob("step_*.pth")
    assert path.name == "step_0000003.pth"
    assert f"comer-d2 replay {path}" in capfd.readouterr().out

    record = read_record(path)
    assert "loss is not finite at iteration 3" in record["reason"]
    assert len(record["images"]) == 1 and len(record["images"][0][0]) == 2
    assert not torch.tensor(record["losses"]["loss_cls"]).isfinite().any()
    assert not (output / "model_0000003.pth").exists()  # nothing was saved after it

    # The step itself is sound (the fault was the test's): the same images, and the losses that were not spoilt.
    result = replay(load_config(str(output / "config.yaml")), record)
    assert result.images == record["images"][0][0]
    for name in ("loss_rpn_cls", "loss_rpn_loc", "loss_mask"):
        assert result.losses[name] == pytest.approx(record["losses"][name][0], rel=1e-6), name
    assert result.first_not_finite is None
    assert result.grad_norms["roi_heads.box_predictor.cls_score"] > 0
    assert result.error is None

    # In float16 the run's loss scale decides which gradients overflow.
    assert record["loss_scale"] == 1.0
    half = load_config(
        str(output / "config.yaml"), ["train.amp.enabled=true", "train.amp.dtype=float16"]
    )
    cls_score = replay(half, record).grad_norms["roi_heads.box_predictor.cls_score"]
    assert cls_score == pytest.approx(
        result.grad_norms["roi_heads.box_predictor.cls_score"], rel=0.05
    )
    overflown = replay(half, {**record, "loss_scale": 2.0**127}).grad_norms
    assert not math.isfinite(overflown["roi_heads.box_predictor.cls_score"])

    assert comer_d2(["replay", str(path)]) == 0
    printed = capfd.readouterr().out
    assert result.images[0] in printed
    assert "first module whose output is not finite: none" in printed
    assert "processes" not in printed

    # One of two processes has half of the images, and its values are not those of the step.
    both = torch.load(path, weights_only=True)
    both["random"] *= 2
    both["losses"] = {name: values * 2 for name, values in both["losses"].items()}
    torch.save(both, path)
    assert comer_d2(["replay", str(path), "--rank", "1"]) == 0
    assert "The step had 2 processes, and this is one of them alone" in capfd.readouterr().out


def test_a_weight_that_is_not_finite_is_found_by_its_module(
    tiny_coco: Path, tmp_path: Path, spoilt: None
) -> None:
    output = tmp_path / "output"
    assert main(["--config-file", TINY, f"train.output_dir={output}"]) == 1
    record = read_record(output / "step_0000003.pth")
    record["model"]["backbone.fpn_lateral3.weight"][:] = float("inf")
    cfg = load_config(str(output / "config.yaml"))
    with pytest.raises(UserError, match="random states cannot be taken over"):
        replay(cfg, {**record, "random": [{"python": 3}]})
    result = replay(cfg, record)
    assert result.first_not_finite == "backbone.fpn_lateral3"
    assert "Inf/NaN" in str(result.error)  # Detectron2's proposals notice, later


def test_spikes_are_kept_and_the_run_goes_on(tiny_coco: Path, tmp_path: Path) -> None:
    # Any loss is a spike when a thousandth of the median is.
    options = ["train.spike_factor=0.001", "train.max_iter=26", f"train.output_dir={tmp_path}"]
    assert main(["--config-file", TINY, *options, "train.checkpointer.period=100"]) == 0
    names = sorted(path.name for path in tmp_path.glob("step_*.pth"))
    assert names == [f"step_{i:07d}.pth" for i in (20, 21, 22)]  # after 20 losses, three at most
    record = read_record(tmp_path / names[1])
    result = replay(load_config(str(tmp_path / "config.yaml")), record)
    total = sum(result.losses.values())
    assert total == pytest.approx(sum(v[0] for v in record["losses"].values()), rel=1e-6)
    assert total == pytest.approx(read_metrics(tmp_path)[21]["total_loss"], rel=0.5)


def test_what_a_spike_is() -> None:
    recorder = StepRecorder("", 10.0)
    assert not any(recorder.is_spike(value) for value in [1.0] * 19 + [50.0])  # too few before
    assert not recorder.is_spike(9.0)
    assert recorder.is_spike(11.0)
    off = StepRecorder("", None)
    assert not any(off.is_spike(value) for value in [1.0] * 30 + [1e9])


WRONG_FORMS = {
    "losses of no processes": {"losses": {"loss_cls": []}},
    "losses that are none": {"losses": {"loss_cls": ["high"]}},
    "norms that are none": {"grad_norms": {"backbone": None}},
    "no process": {"random": []},
    "weights that are none": {"model": {"w": 3}},
    "data without a seed": {"data": {"sead": 3}},
    "an iteration before the first": {"iteration": -1},
    "no loss scale": {"loss_scale": 0.0},
}


@pytest.mark.parametrize("what", WRONG_FORMS)
def test_a_record_of_a_wrong_form_is_refused(what: str, tmp_path: Path) -> None:
    sound = {
        "reason": "a spike",
        "iteration": 3,
        "losses": {"loss_cls": [1.0]},
        "images": [[["a.jpg"]]],
        "grad_norms": {"backbone": 2.0},
        "random": [{}],
        "data": {"seed": 5},
        "loss_scale": 1.0,
        "model": {"w": torch.ones(1)},
    }
    path = tmp_path / "step_0000003.pth"
    torch.save(sound, path)
    assert read_record(path)["iteration"] == 3
    torch.save(sound | WRONG_FORMS[what], path)
    with pytest.raises(UserError, match="is not the record of a step"):
        read_record(path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"no record")
    torch.save({"model": {}}, tmp_path / "b.pth")
    for name in ("a.pth", "b.pth", "c.pth"):
        with pytest.raises(UserError, match=name):
            read_record(tmp_path / name)


def test_values_stand_under_each_other() -> None:
    replayed = {"a": 1.0, "predictor.transformer_cross_attention_layers": 2.0, "new": 3.0}
    lines = side_by_side("loss", dict.fromkeys(list(replayed)[:2], 1e-05), replayed).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["a", "1e-05", "1"] and lines[3].split() == ["new", "3"]
