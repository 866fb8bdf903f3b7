"""The ladder of docs/FINETUNING.md: every row has a folder and a config that train_net.py takes."""

import importlib.util

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
    rows = script.rows_of(task)
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
