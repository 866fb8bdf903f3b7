"""Folders like those of a finished run, with a model that has learnt nothing but sees things everywhere."""

from __future__ import annotations

import os
from pathlib import Path
from unittest import mock

import torch
from detectron2.config import LazyConfig, instantiate

from comer_d2.d2.data.custom import resolve_dataset
from comer_d2.d2.data.digits import DigitsSpec, make_digits
from comer_d2.d2.data.panoptic_from_instances import panoptic_from_instances
from comer_d2.d2.engine.config import load_config
from tests.d2.runs import ROOT

CONFIGS = ROOT / "configs" / "quickstart"
DETECTOR = (
    "mask_rcnn_comer_digits.py",
    [
        "model.roi_heads.box_predictor.test_score_thresh=0.0",
        "model.roi_heads.box_predictor.test_topk_per_image=20",
    ],
)
PANOPTIC = (
    "mask2former_comer_digits.py",
    ["model.score_threshold=0.0", "model.overlap_threshold=0.0"],
)
SEMANTIC = ("mask2former_comer_digits_semantic.py", [])


def write_digits(folder: Path) -> Path:
    """Two training and three validation scenes, as the quickstart's, with panoptic annotations."""
    for name in ("digits", "digits-panoptic"):
        make_digits(folder / name, DigitsSpec(train_images=2, val_images=3), progress=False)
    for split in ("train", "val"):
        digits = folder / "digits-panoptic"
        panoptic_from_instances(
            digits / f"{split}.json", digits / f"panoptic_{split}", background="page"
        )
    return folder


def write_run(folder: Path, datasets: Path, kind: tuple[str, list[str]]) -> Path:
    """config.yaml and model_final.pth of an untrained model, in a new folder."""
    folder.mkdir()
    name, overrides = kind
    with mock.patch.dict(os.environ, DETECTRON2_DATASETS=str(datasets)):
        cfg = load_config(str(CONFIGS / name), overrides)
    resolve_dataset(cfg)
    LazyConfig.save(cfg, str(folder / "config.yaml"))
    torch.manual_seed(0)
    torch.save({"model": instantiate(cfg.model).state_dict()}, folder / "model_final.pth")
    return folder
