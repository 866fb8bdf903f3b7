"""A ViT-CoMer around a Swin: from timm's weights to a detector that trains, resumes and is evaluated."""

import json
from pathlib import Path

import pytest
import timm
import torch

from comer_d2.d2.cli import main
from tests.d2.runs import ROOT

CONFIG = str(ROOT / "tests/d2/tiny_comer_swin.py")
TRUNK = "backbone.bottom_up.vit.net."


def run(output: Path, *arguments: str) -> int:
    return main(["--config-file", CONFIG, f"train.output_dir={output}", *arguments])


def test_trains_from_timms_file_and_is_evaluated(
    tiny_coco: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    torch.manual_seed(0)
    swin = timm.create_model(
        "swin_tiny_patch4_window7_224",
        embed_dim=12,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 2, 4),
        num_classes=5,
    ).state_dict()
    torch.save(swin, tmp_path / "swin.pth")
    output = tmp_path / "output"
    assert run(output, f"train.init_checkpoint={tmp_path / 'swin.pth'}", "train.max_iter=2") == 0
    printed = capfd.readouterr().out
    assert "timm's swin_tiny_patch4_window7_224 from" in printed
    assert "not used: norm.weight, norm.bias, head.fc.weight, head.fc.bias (677)" in printed

    weights = torch.load(output / "model_final.pth")["model"]
    trained = {n.removeprefix(TRUNK): w for n, w in weights.items() if n.startswith(TRUNK)}
    assert len(trained) == len(swin) - 4
    for name, weight in trained.items():  # two small steps from where it began
        start = swin[name.replace("layers_", "layers.")]
        assert not torch.equal(weight, start), name
        torch.testing.assert_close(weight, start, rtol=0, atol=2e-2)

    results = json.loads((output / "evaluation.json").read_text())["results"]
    again = tmp_path / "again"
    assert run(again, "--eval-only", f"train.init_checkpoint={output / 'model_final.pth'}") == 0
    assert json.loads((again / "evaluation.json").read_text())["results"] == results
    assert run(output, "--resume", "train.max_iter=3") == 0
