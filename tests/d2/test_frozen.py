"""Runs with a frozen ViT: what they train, what their checkpoints hold, and what these load as."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from detectron2.config import instantiate
from omegaconf import OmegaConf
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from comer_d2.d2.cli import main
from comer_d2.d2.commands.convert import main as convert
from comer_d2.d2.engine.checkpoint import load_checkpoint, read_checkpoint
from comer_d2.d2.engine.config import load_config
from comer_d2.d2.engine.run import warn_of_noise
from comer_d2.d2.errors import UserError
from comer_d2.d2.predictor import load
from comer_d2.weights import WeightsError, load_weights
from tests.d2.runs import LIMIT, ROOT, start_train_net

CONFIG = str(ROOT / "tests/d2/tiny_comer.py")
VIT = "model.backbone.bottom_up.vit"
PREFIX = "backbone.bottom_up.vit."
FROZEN = [f"{VIT}.freeze_at=2", "model.backbone.bottom_up.use_cti_to_v=False"]
HALF = [*FROZEN, f"{VIT}.frozen_dtype=bfloat16"]
SHORT = ["train.max_iter=4", "train.checkpointer.period=2", "train.ema.enabled=true"]


def pretrained_vit() -> nn.Module:
    """As a pretraining leaves it: timm's, whose position table fits other sizes resampled."""
    return VisionTransformer(img_size=64, embed_dim=24, depth=2, num_heads=3, num_classes=0)


@pytest.fixture(scope="module")
def run(tiny_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the ViT's file and a run that read it, frozen and in bfloat16."""
    folder = tmp_path_factory.mktemp("frozen")
    torch.manual_seed(5)
    torch.save(pretrained_vit().state_dict(), folder / "vit.pth")
    options = [*HALF, *SHORT, f"train.init_checkpoint={folder / 'vit.pth'}"]
    assert main(["--config-file", CONFIG, f"train.output_dir={folder / 'run'}", *options]) == 0
    return folder


def model_of(run: Path, *options: str) -> nn.Module:
    return instantiate(load_config(str(run / "run" / "config.yaml"), list(options)).model)


def test_a_checkpoint_holds_what_was_trained_and_the_name_of_the_rest(run: Path) -> None:
    state = read_checkpoint(str(run / "run" / "model_final.pth"))
    for entry in ("model", "ema"):
        assert state[entry]
        assert not [name for name in state[entry] if name.startswith(PREFIX)]
    assert state["frozen_vit"]["source"] == str(run / "vit.pth")
    names = {name for name in model_of(run).state_dict() if name.startswith(PREFIX)}
    assert set(state["frozen_vit"]["names"]) == names
    trained = state["trainer"]["optimizer"]["names"]
    assert trained
    assert not names & set(trained)
    assert state["model"].keys() | names == model_of(run).state_dict().keys()


def test_loaded_it_is_the_whole_model(run: Path) -> None:
    model = model_of(run)
    load_checkpoint(model, str(run / "run" / "model_final.pth"), complete=True)
    vit = torch.load(run / "vit.pth")
    own = model.state_dict()
    weight = "blocks.1.mlp.fc1.weight"
    assert own[PREFIX + weight].dtype == torch.bfloat16
    assert torch.equal(own[PREFIX + weight], vit[weight].bfloat16())
    assert torch.equal(own[PREFIX + "pos_embed"], vit["pos_embed"])
    again = model_of(run)
    load_weights(again, run / "run" / "model_final.pth", complete=True)
    assert all(torch.equal(value, own[name]) for name, value in again.state_dict().items())
    assert load(run / "run")(torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()) is not None


def test_converted_it_is_whole(run: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.safetensors"
    source = str(run / "run" / "model_final.pth")
    assert convert(["--config-file", str(run / "run" / "config.yaml"), source, str(whole)]) == 0
    vit = run / "vit.pth"
    hidden = vit.rename(run / "hidden.pth")
    try:
        model = model_of(run)
        load_checkpoint(model, str(whole), complete=True)
    finally:
        hidden.rename(vit)
    reference = model_of(run)
    load_checkpoint(reference, source, complete=True)
    same(model.state_dict(), reference.state_dict())


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def test_a_resumed_run_is_the_same_run(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "run", tmp_path / "run")
    (tmp_path / "run" / "model_final.pth").unlink()
    (tmp_path / "run" / "last_checkpoint").write_text("model_0000001.pth")
    options = [*HALF, *SHORT, f"train.init_checkpoint={run / 'vit.pth'}"]
    output = f"train.output_dir={tmp_path / 'run'}"
    assert main(["--config-file", CONFIG, "--resume", output, *options]) == 0
    one, other = (
        read_checkpoint(str(folder / "run" / "model_final.pth")) for folder in (run, tmp_path)
    )
    same(one["model"], other["model"])
    same(one["ema"], other["ema"])
    assert one["frozen_vit"] == other["frozen_vit"]


def test_the_file_is_found_next_to_the_checkpoint(run: Path, tmp_path: Path) -> None:
    shutil.copy(run / "run" / "model_final.pth", tmp_path)
    hidden = (run / "vit.pth").rename(run / "hidden.pth")
    try:
        with pytest.raises(UserError, match=r"vit\.pth' does not exist, and no 'vit\.pth' next to"):
            load_checkpoint(model_of(run), str(tmp_path / "model_final.pth"), complete=True)
        shutil.copy(hidden, tmp_path / "vit.pth")
        load_checkpoint(model_of(run), str(tmp_path / "model_final.pth"), complete=True)
        with torch.no_grad():
            other = {name: value + 1 for name, value in torch.load(hidden).items()}
        torch.save(other, tmp_path / "vit.pth")
        with pytest.raises(UserError, match=r"leaves out its frozen ViT.*has SHA-256 .* another"):
            load_checkpoint(model_of(run), str(tmp_path / "model_final.pth"), complete=True)
        with pytest.raises(WeightsError, match=r"has SHA-256 .* another"):
            load_weights(model_of(run), tmp_path / "model_final.pth")
    finally:
        hidden.rename(run / "vit.pth")


def test_another_vit_than_that_of_the_training_is_an_error(run: Path) -> None:
    """Its file would fit: the table of positions would be resampled, silently."""
    model = model_of(run, f"{VIT}.pretrain_img_size=128")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"its weights are not those of the training.*config\.yaml"):
        load_checkpoint(model, str(run / "run" / "model_final.pth"), complete=True)
    same(model.state_dict(), before)


def test_in_float32_it_is_the_same_vit(run: Path) -> None:
    model = model_of(run, f"{VIT}.frozen_dtype=float32")
    load_checkpoint(model, str(run / "run" / "model_final.pth"), complete=True)
    weight = "blocks.1.mlp.fc1.weight"
    assert torch.equal(model.state_dict()[PREFIX + weight], torch.load(run / "vit.pth")[weight])


@pytest.mark.parametrize("entry", [{}, 5, {"source": 1}])
def test_a_damaged_entry_is_an_error(run: Path, tmp_path: Path, entry: object) -> None:
    state = torch.load(run / "run" / "model_final.pth")
    if isinstance(entry, dict) and entry:
        entry = {**state["frozen_vit"], **entry}
    torch.save({**state, "frozen_vit": entry}, tmp_path / "model.pth")
    with pytest.raises(UserError, match="'frozen_vit' is not of the form"):
        load_checkpoint(model_of(run), str(tmp_path / "model.pth"), complete=True)


def train(run: Path, output: Path, *options: str) -> dict:
    arguments = ["--config-file", CONFIG, f"train.output_dir={output}", *options]
    assert main(arguments) == 0
    return read_checkpoint(str(output / "model_final.pth"))


def test_from_such_a_checkpoint_on(run: Path, tmp_path: Path) -> None:
    """With fewer blocks frozen, the file is still the first one's; with none, there is no more of it."""
    init = f"train.init_checkpoint={run / 'run' / 'model_final.pth'}"
    first = [f"{VIT}.freeze_at=1", "model.backbone.bottom_up.use_cti_to_v=False"]
    state = train(run, tmp_path / "first", init, *first)
    assert state["frozen_vit"]["source"] == str(run / "vit.pth")
    assert not [n for n in state["frozen_vit"]["names"] if "blocks.1." in n]
    assert f"{PREFIX}blocks.1.attn.proj.weight" in state["model"]
    state = train(run, tmp_path / "none", init, "model.backbone.bottom_up.use_cti_to_v=False")
    assert "frozen_vit" not in state
    assert f"{PREFIX}blocks.0.attn.proj.weight" in state["model"]


def test_without_a_file_to_name_everything_is_held(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    state = train(run, tmp_path / "run", *FROZEN)
    assert (
        "The ViT's weights are random, and stay nearly so: it is frozen." in capfd.readouterr().out
    )
    assert "frozen_vit" not in state
    assert f"{PREFIX}blocks.0.attn.proj.weight" in state["model"]


def test_a_slow_vit_of_random_weights_is_told(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = OmegaConf.create({"optimizer": {"params": {"vit_lr_factor": 0.02}}})
    warn_of_noise(cfg, model_of(run, f"{VIT}.freeze_at=0", f"{VIT}.frozen_dtype=float32"))
    assert "it is at 0.02 of the rate" in caplog.text


def test_two_processes_do_not_wait_for_gradients_of_it(run: Path, tmp_path: Path) -> None:
    """DistributedDataParallel refuses parameters that take part and get no gradient."""
    options = [*HALF, "train.max_iter=3", f"train.init_checkpoint={run / 'vit.pth'}"]
    output = f"train.output_dir={tmp_path / 'run'}"
    process = start_train_net("--config-file", CONFIG, "--num-gpus", "2", output, *options)
    printed, _ = process.communicate(timeout=LIMIT)
    assert process.returncode == 0, printed
    state = read_checkpoint(str(tmp_path / "run" / "model_final.pth"))
    assert state["frozen_vit"]["source"] == str(run / "vit.pth")
