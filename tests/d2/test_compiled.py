"""train.compile, and load's argument of the name: what is compiled, and that runs and checkpoints hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import LazyConfig
from torch import nn

from comer_d2.d2.cli import main
from comer_d2.d2.engine.run import build_model
from comer_d2.d2.errors import UserError
from comer_d2.d2.predictor import load
from comer_d2.network.compiled import PARTS
from tests.d2.runs import ROOT, TINY, read_metrics

TINY_COMER = str(ROOT / "tests/d2/tiny_comer.py")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[nn.Module]:
    """What is compiled, by a compiler that only traces."""
    found: list[nn.Module] = []
    original = nn.Module.compile

    def listening(module: nn.Module, **options: Any) -> None:
        found.append(module)
        original(module, backend="eager", fullgraph=True, **options)

    monkeypatch.setattr(nn.Module, "compile", listening)
    torch._dynamo.reset()
    return found


def parts(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, PARTS)]


@pytest.mark.slow
def test_runs_and_checkpoints_are_the_same(
    tiny_coco: Path, tmp_path: Path, compiled: list[nn.Module]
) -> None:
    losses, weights = [], []
    for how in ("null", "blocks"):
        output = tmp_path / how
        given = ["--config-file", TINY_COMER, f"train.compile={how}", f"train.output_dir={output}"]
        assert main([*given, "train.max_iter=3"]) == 0
        losses.append([line["total_loss"] for line in read_metrics(output) if "total_loss" in line])
        weights.append(torch.load(output / "model_final.pth", weights_only=True)["model"])
        if how == "blocks":
            trained = len(compiled)
            assert main([*given, "--eval-only", "--resume"]) == 0
            assert len(compiled) == 2 * trained > 0
            predictor = load(output, compile=True)
            assert compiled[2 * trained :] == parts(predictor.model)
            predictor(torch.zeros(3, 64, 64, dtype=torch.uint8))
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    eager, found = weights
    assert eager.keys() == found.keys()
    moved = {
        name: (found[name].float() - value.float()).abs().max() for name, value in eager.items()
    }
    assert max(moved.values()) < 1e-3, max(moved, key=lambda name: moved[name])


def test_what_is_compiled(tiny_coco: Path, compiled: list[nn.Module]) -> None:
    cfg = LazyConfig.load(TINY_COMER)
    cfg.train.compile = "blocks"
    model = build_model(cfg)
    assert compiled == parts(model)
    assert {type(part).__name__ for part in compiled} == {"Block", "MRFP", "CTIToV", "CTIToC"}
    compiled.clear()
    cfg.train.compile = "model"
    model = build_model(cfg)
    assert compiled == [model.backbone]


def test_a_model_without_blocks(tiny_coco: Path, compiled: list[nn.Module]) -> None:
    cfg = LazyConfig.load(TINY)
    cfg.train.compile = "blocks"
    with pytest.raises(
        UserError, match=r"train\.compile=blocks: GeneralizedRCNN has no ViT.*model"
    ):
        build_model(cfg)


def test_a_wrong_argument_of_load(whole_run: Path) -> None:
    with pytest.raises(UserError, match=r"compile='fast': use blocks, model"):
        load(whole_run, compile="fast")
