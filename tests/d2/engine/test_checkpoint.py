"""Checkpoints: whole or not at all on disk, strict when they are read."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from comer_d2.d2.engine.checkpoint import CheckpointFolder, load_checkpoint, read_checkpoint
from comer_d2.d2.engine.hooks import Checkpoints
from comer_d2.d2.errors import TrainingError, UserError
from comer_d2.weights.files import write_atomically


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half of the n")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, fail)
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


def test_only_the_checkpoints_of_this_run_are_removed(tmp_path: Path) -> None:
    """A run that starts anew in an old folder has the lower numbers."""
    (tmp_path / "model_0009999.pth").write_bytes(b"of an older run")
    folder = CheckpointFolder(str(tmp_path), max_to_keep=1)
    for name in ("model_0000001", "model_0000003"):
        folder.write(name, {"model": {"w": torch.ones(1)}})
    assert {path.name for path in tmp_path.glob("*.pth")} == {
        "model_0009999.pth",
        "model_0000003.pth",
    }
    assert folder.last() == str(tmp_path / "model_0000003.pth")


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    folder = CheckpointFolder(str(tmp_path))
    folder.write("model_0000001", {"model": {"w": torch.ones(1)}})
    before = sorted(tmp_path.iterdir())
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            TrainingError, match=r"model_0000003\.pth' cannot be written: .* MiB free"
        ):
            folder.write("model_0000003", {"model": {"w": torch.ones(1_000_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(tmp_path.iterdir()) == before
    assert folder.last() == str(tmp_path / "model_0000001.pth")


def test_a_folder_that_was_removed_is_one_clear_error(tmp_path: Path) -> None:
    folder = CheckpointFolder(str(tmp_path / "gone"))
    with pytest.raises(TrainingError, match=r"cannot be written: .*gone.* does not exist"):
        folder.write("model_0000003", {"model": {"w": torch.ones(1)}})


@pytest.mark.parametrize("marker", ["", "../other/model.pth", "model_0000001.pth\nmore", "\0\0"])
def test_a_marker_that_names_no_checkpoint(tmp_path: Path, marker: str) -> None:
    (tmp_path / "last_checkpoint").write_text(marker)
    with pytest.raises(UserError, match="should hold the name of a checkpoint"):
        CheckpointFolder(str(tmp_path)).last()


def test_weights_that_are_not_finite_replace_no_checkpoint(tmp_path: Path) -> None:
    folder = CheckpointFolder(str(tmp_path))
    folder.write("model_final", {"model": {"w": torch.ones(1)}})
    with pytest.raises(TrainingError, match=r"'head\.weight' is not finite"):
        folder.write("model_final", {"model": {"head.weight": torch.tensor([1.0, torch.nan])}})
    assert torch.equal(read_checkpoint(folder.last())["model"]["w"], torch.ones(1))


def test_averages_that_are_not_finite_replace_no_checkpoint(tmp_path: Path) -> None:
    folder = CheckpointFolder(str(tmp_path))
    state = {"model": {"w": torch.ones(1)}, "ema": {"w": torch.full((1,), torch.nan)}}
    with pytest.raises(TrainingError, match="'w' is not finite"):
        folder.write("model_final", state)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("average", [True, None])  # to evaluate, and to go on
def test_a_damaged_average_is_refused(average: bool | None, tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    damaged = {**model.state_dict(), "bias": torch.full((2,), torch.nan)}
    torch.save({"model": model.state_dict(), "ema": damaged}, tmp_path / "model.pth")
    with pytest.raises(UserError, match=r"model\.pth', its moving average .* 'bias' has NaN"):
        load_checkpoint(model, str(tmp_path / "model.pth"), complete=True, average=average)
    load_checkpoint(model, str(tmp_path / "model.pth"), complete=True, average=False)


def test_a_checkpoint_names_nothing_to_remove_but_checkpoints_beside_it(tmp_path: Path) -> None:
    victim = tmp_path / "model_best.pth"
    victim.write_bytes(b"of another run")
    (tmp_path / "run").mkdir()
    folder = CheckpointFolder(str(tmp_path / "run"), max_to_keep=1)
    Checkpoints(folder, 1).load_state_dict({"numbered": ["../model_best", "model_0000001"]})
    folder.write("model_0000003", {"model": {"w": torch.ones(1)}})
    assert victim.exists()
    assert folder.numbered == ["model_0000003"]


def test_a_file_with_objects_in_it_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"w": torch.ones(1)}, "when": Path("x")}, tmp_path / "a.pth")
    with pytest.raises(UserError, match=r"checkpoint '.*a\.pth' wants the type pathlib\.\w+"):
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


def test_another_file_than_the_one_meant(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(1)}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="has SHA-256"):
        read_checkpoint(str(tmp_path / "a.pth"), sha256="0" * 64)
