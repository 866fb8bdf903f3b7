"""Checkpoints: whole or not at all on disk, strict when they are read."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from comer_d2.d2.engine.checkpoint import (
    CheckpointFolder,
    load_weights,
    read_checkpoint,
    write_atomically,
)
from comer_d2.d2.engine.errors import TrainingError, UserError


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(f) -> None:
        f.write(b"half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(str(path), fail)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_oldest_numbered_checkpoints_go_first(tmp_path: Path) -> None:
    folder = CheckpointFolder(str(tmp_path), max_to_keep=2)
    assert folder.last() is None
    for name in ("model_0000001", "model_0000003", "model_0000005", "model_final"):
        folder.write(name, {"model": {"w": torch.ones(1)}})
    folder.write("model_best", {"model": {"w": torch.ones(1)}}, resume_from=False)
    kept = {path.name for path in tmp_path.glob("*.pth")}
    assert kept == {"model_0000003.pth", "model_0000005.pth", "model_final.pth", "model_best.pth"}
    assert folder.last() == str(tmp_path / "model_final.pth")


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path: Path) -> None:
    folder = CheckpointFolder(str(tmp_path))
    folder.write("model_final", {"model": {"w": torch.ones(1)}})
    with pytest.raises(TrainingError, match=r"'head\.weight' is not finite"):
        folder.write("model_final", {"model": {"head.weight": torch.tensor([1.0, torch.nan])}})
    assert torch.equal(read_checkpoint(folder.last())["model"]["w"], torch.ones(1))


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"w": torch.ones(1)}, "args": argparse.Namespace(lr=1)},
        {"model": {"w": torch.ones(1)}, "step": np.float64(3)},
    ],
)
def test_a_file_with_objects_in_it_is_refused(tmp_path: Path, content: dict) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"a\.pth' is no PyTorch file of tensors and plain values"):
        read_checkpoint(str(tmp_path / "a.pth"))


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(b"no checkpoint")
    torch.save([1, 2], tmp_path / "b.pth")
    with pytest.raises(UserError, match=r"a\.pth'"):
        read_checkpoint(str(tmp_path / "a.pth"))
    with pytest.raises(UserError, match=r"b\.pth' holds a list"):
        read_checkpoint(str(tmp_path / "b.pth"))
    with pytest.raises(UserError, match=r"c\.pth' does not exist"):
        read_checkpoint(str(tmp_path / "c.pth"))


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4))


def test_a_bare_state_dict_of_a_wrapped_model_loads(tmp_path: Path, model: nn.Module) -> None:
    weights = {f"module.{k}": torch.ones_like(v) for k, v in model.state_dict().items()}
    torch.save(weights, tmp_path / "a.pth")
    report = load_weights(model, read_checkpoint(str(tmp_path / "a.pth"))["model"], "a.pth")
    assert len(report.loaded) == 4
    assert all((value == 1).all() for value in model.state_dict().values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"1.bias": None}, r"1 missing, keep their initial values: 1\.bias"),
        ({"2.bias": torch.ones(4)}, r"1 without a place in this model: 2\.bias"),
        ({"1.bias": torch.ones(5)}, r"another shape .*: 1\.bias \(\(5,\), \(4,\)\)"),
    ],
)
def test_what_does_not_fit_is_an_error_and_changes_nothing(
    model: nn.Module, change: dict, message: str
) -> None:
    weights = {k: v + 1 for k, v in {**model.state_dict(), **change}.items() if v is not None}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        load_weights(model, weights, "a.pth")
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    report = load_weights(model, weights, "a.pth", allow=["1.bias", "2.*"])
    assert len(report.loaded) >= 3


def test_for_training_tensors_may_be_missing_but_not_all(model: nn.Module) -> None:
    weights = {k: v for k, v in model.state_dict().items() if k.startswith("0")}
    report = load_weights(model, weights, "a.pth", allow_missing=True)
    assert report.missing == ["1.weight", "1.bias"]
    with pytest.raises(UserError, match="loaded 0 tensors"):
        load_weights(model, {}, "a.pth", allow_missing=True)
