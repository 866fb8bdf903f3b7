"""comer-d2 convert: there and back for a config's model, or no file."""

import hashlib
from pathlib import Path

import pytest
import timm
import torch
from detectron2.config import instantiate
from safetensors.torch import load_file, save_file
from torch import Tensor

from comer_d2.__main__ import main
from comer_d2.d2.engine.config import load_config
from tests.d2.runs import ROOT

CONFIG = ROOT / "tests/d2/tiny_comer.py"


@pytest.fixture
def tool(tiny_coco, capsys):
    """The command in this process: arguments -> its exit code and what it printed."""

    def run(*arguments: object) -> tuple[int, str]:
        code = main(["convert", "--config-file", str(CONFIG), *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.fixture
def trained(tiny_coco, tmp_path: Path) -> dict[str, Tensor]:
    """The config's detector as a run saves it, in model.safetensors."""
    torch.manual_seed(0)
    weights = instantiate(load_config(str(CONFIG)).model).state_dict()
    weights = {
        name: torch.randn_like(t) if t.is_floating_point() else t for name, t in weights.items()
    }
    save_file(weights, tmp_path / "model.safetensors")
    return weights


@pytest.fixture
def deit(tmp_path: Path) -> dict[str, Tensor]:
    """A pretrained ViT of the config's size, in deit.pth."""
    weights = timm.create_model(
        "vit_tiny_patch16_224", embed_dim=24, depth=2, num_heads=3, img_size=96, num_classes=5
    ).state_dict()
    torch.save({"model": weights}, tmp_path / "deit.pth")
    return weights


HEADS = ("backbone.fpn_*", "proposal_generator.*", "roi_heads.*")


@pytest.mark.parametrize("left_out", [(), HEADS], ids=["detector", "backbone"])
def test_there_and_back(tool, trained, tmp_path: Path, left_out: tuple[str, ...]) -> None:
    """The whole Mask R-CNN, or its backbone alone: what is left out is listed."""
    source, official = tmp_path / "model.safetensors", tmp_path / "official.pth"
    allow = ["--allow", *left_out] if left_out else []
    code, printed = tool(source, official, "--to", "official", *allow)
    assert code == 0, printed
    assert ("left out, as asked" in printed) == bool(left_out)
    written = torch.load(official, weights_only=True)["state_dict"]
    assert ("spm.stem.0.weight" if left_out else "backbone.spm.stem.0.weight") in written
    code, printed = tool(official, tmp_path / "back.safetensors")
    assert code == 0 and f"Wrote {tmp_path / 'back.safetensors'}: " in printed
    back = load_file(tmp_path / "back.safetensors")
    expected = "backbone.bottom_up." if left_out else ""
    assert back.keys() == {name for name in trained if name.startswith(expected)}
    assert all(torch.equal(tensor, trained[name]) for name, tensor in back.items())


def test_a_pretrained_vit(tool, deit, tmp_path: Path) -> None:
    """Resampled to the model's sizes; the table says where everything went."""
    code, printed = tool(tmp_path / "deit.pth", tmp_path / "vit.safetensors")
    assert code == 0
    lines = [line.split() for line in printed.splitlines()]
    assert ["loaded", "resampled", "not", "used", "fresh"] in lines
    for group in (["patch", "embed"], ["position"], ["blocks"], ["heads"]):
        assert any(line[: len(group)] == group for line in lines), group
    assert "ViT-CoMer has no norm after the last block" in printed
    weights = load_file(tmp_path / "vit.safetensors")
    assert weights["backbone.bottom_up.vit.pos_embed"].shape == (1, 17, 24)
    assert all(name.startswith("backbone.bottom_up.vit.") for name in weights)


def test_sha256(tool, deit, tmp_path: Path) -> None:
    good = hashlib.sha256((tmp_path / "deit.pth").read_bytes()).hexdigest()
    assert tool(tmp_path / "deit.pth", tmp_path / "a.safetensors", "--sha256", good)[0] == 0
    code, printed = tool(tmp_path / "deit.pth", tmp_path / "b.pth", "--sha256", "0" * 64)
    assert code == 2 and f"has SHA-256 {good}, not {'0' * 64}" in printed
    assert not (tmp_path / "b.pth").exists()


DAMAGED = {
    "not fit: extra": {"extra": torch.zeros(1)},
    "'norm.weight' has NaN": {"norm.weight": torch.full((24,), torch.nan)},
    "13 rows": {"pos_embed": torch.zeros(1, 13, 24)},
    "not in the pretraining": {"blocks.1.norm1.bias": None},
}


@pytest.mark.parametrize("message", DAMAGED)
def test_failure_leaves_the_destination_as_it_was(tool, deit, tmp_path: Path, message) -> None:
    damaged = {n: t for n, t in {**deit, **DAMAGED[message]}.items() if t is not None}
    torch.save(damaged, tmp_path / "bad.pth")
    assert_untouched(tool, tmp_path, tmp_path / "bad.pth", message)


def test_failure_while_writing(tool, deit, tmp_path: Path, monkeypatch) -> None:
    def full_disk(tensors: dict, path: Path) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("comer_d2.weights.files.save_file", full_disk)
    assert_untouched(tool, tmp_path, tmp_path / "deit.pth", "error: No space left on device")


def assert_untouched(tool, tmp_path: Path, source: Path, message: str) -> None:
    destination = tmp_path / "out" / "vit.safetensors"
    destination.parent.mkdir()
    destination.write_bytes(b"what was here")
    code, printed = tool(source, destination)
    assert code == 2
    assert message in printed and "Traceback" not in printed
    assert [path.name for path in destination.parent.iterdir()] == ["vit.safetensors"]
    assert destination.read_bytes() == b"what was here"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["deit.pth", "a.pth", "--to", "official"], "is a pretrained ViT"),
        (["nothing.pth", "a.pth"], "'nothing.pth' does not exist"),
        (["deit.pth", "a.bin"], "'a.bin' must end in .safetensors, .pth or .pt"),
        (["deit.pth", "no/a.pth"], "the folder 'no' does not exist"),
        (["deit.pth", "a.pth", "--family", "clip"], "nothing that is known here as 'clip'"),
        (["timm:vit_nothing_at_all", "a.pth"], "has no model 'vit_nothing_at_all'"),
    ],
)
def test_one_clear_error(tool, deit, tmp_path: Path, monkeypatch, arguments, message) -> None:
    monkeypatch.chdir(tmp_path)
    code, printed = tool(*arguments)
    assert code == 2
    assert message in printed and printed.startswith("comer-d2 convert: error: ")
    assert not list(tmp_path.glob("a.*"))


def test_classes_of_ones_own_data_come_from_it_or_from_the_command(
    tmp_path: Path, monkeypatch, capsys
) -> None:
    """Without either, one message; the number alone is enough, for the data is not needed."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "nothing"))
    config = str(ROOT / "configs/quickstart/atss_comer_digits.py")
    cfg = load_config(config)
    cfg.dataset.num_classes = 3
    weights = instantiate(cfg.model).state_dict()
    torch.save({"model": weights}, tmp_path / "model.pth")
    command = ["convert", "--config-file", config, str(tmp_path / "model.pth")]

    assert main([*command, str(tmp_path / "there.pth"), "--to", "official"]) == 2
    assert "there is no such file" in capsys.readouterr().err

    three = "dataset.num_classes=3"
    assert main([*command, str(tmp_path / "there.pth"), "--to", "official", three]) == 0
    command[-1] = str(tmp_path / "there.pth")
    assert main([*command, str(tmp_path / "back.pth"), three]) == 0
    back = torch.load(tmp_path / "back.pth")["model"]
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)
