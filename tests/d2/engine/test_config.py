"""What every config has to hold, whatever its overrides."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from comer_d2.d2.engine.checks import build, check_classes
from comer_d2.d2.engine.config import load_config, settle_workers
from comer_d2.d2.errors import UserError

CONFIG = Path(__file__).parents[3] / "configs/COCO/mask_rcnn_comer_s_1x.py"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train=null", "train=None must be a group of keys"),
        ("optimizer=null", "optimizer=None must be a group of keys"),
        ("train.amp=null", "train.amp=None must be a group of keys"),
        ("train.checkpointer=null", "train.checkpointer=None must be a group of keys"),
        ("train.checkpointer.period=0", "train.checkpointer.period=0 must be a whole number"),
        ("train.checkpointer.period=2.5", "train.checkpointer.period=2.5 must be a whole number"),
        ("train.checkpointer.max_to_keep=0", "train.checkpointer.max_to_keep=0 must be a whole"),
        ("train.compile=backbone", "train.compile='backbone': use blocks, model, or null for none"),
        ("train.compile=true", "train.compile=True: use blocks, model, or null for none"),
        ("train.max_iter=true", "'train.max_iter' holds a number"),
        ("train.seed=10000000000", "train.seed=10000000000 must be a whole number below 2**31"),
        ("train.output_dir=null", "train.output_dir=None must be the path of a folder"),
        ("train.eval_period=-3", "train.eval_period=-3 must be a whole number; 0: at the end"),
        ("train.early_stopping.mode=best", "train.early_stopping.mode='best': max or min"),
        ("train.early_stopping.min_delta=-1", "min_delta=-1 must be a number of at least 0"),
        ("train.early_stopping.min_delta=null", "min_delta=None must be a number of at least 0"),
        ("train.early_stopping.patience=true", "patience=True must be a whole number"),
        ("train.ema.decay=null", "train.ema.decay=None must be between 0 and 1"),
        ("train.frozen_vit=null", "train.frozen_vit=None is a share of the run"),
        ("train.epochs=inf", "train.epochs=inf must be positive"),
        ("train.clip_grad.max_norm=all", "train.clip_grad.max_norm='all' must be positive"),
        ("dataloader.test.num_workers=1.5", "dataloader.test.num_workers=1.5 must be a whole"),
        ("dataloader.test.mapper.image_format=BGR", "two orders of channels: dataloader.train.map"),
        ("train.seed=null", "train.seed=None must be a whole number below 2**31"),
    ],
)
def test_what_a_run_could_not_use_is_refused_by_key(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        load_config(str(CONFIG), [override])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "needed"),
    [
        ("early_stopping.metric", "segm/AP", "train.early_stopping.patience, which is None"),
        ("ema.decay", "0.999", "train.ema.enabled, which is False"),
        ("init_sha256", "ab12", "train.init_checkpoint, which is ''"),
    ],
)
def test_a_key_that_needs_another_is_refused_without_it(key: str, value: str, needed: str) -> None:
    with pytest.raises(UserError, match=rf"train\.{key} has no effect: it needs {needed}"):
        load_config(str(CONFIG), [f"train.{key}={value}"])


def test_what_a_key_needs_may_be_off_on_purpose() -> None:
    cfg = load_config(str(CONFIG), ["train.ema.enabled=false", "train.ema.decay=0.999"])
    assert cfg.train.ema.decay == 0.999


def test_patience_needs_evaluations_to_count() -> None:
    with pytest.raises(UserError, match=r"patience counts evaluations, and train\.eval_period=0"):
        load_config(str(CONFIG), ["train.early_stopping.patience=2", "train.eval_period=0"])


def test_every_checkpoint_may_be_kept() -> None:
    cfg = load_config(str(CONFIG), ["train.checkpointer.max_to_keep=null"])
    assert cfg.train.checkpointer.max_to_keep is None


@pytest.mark.parametrize("leaf", ["COCO/mask_rcnn_comer_s_1x", "COCO/dino_comer_s_12ep"])
def test_bad_images_of_public_data_may_be_skipped_by_a_plain_key(leaf: str) -> None:
    change = ["dataloader.train.on_bad_image=skip", "dataloader.train.max_bad_images=0.2"]
    cfg = load_config(str(CONFIG.parents[1] / f"{leaf}.py"), change)
    assert (cfg.dataloader.train.on_bad_image, cfg.dataloader.train.max_bad_images) == ("skip", 0.2)


def test_null_for_a_number_is_told_by_its_node() -> None:
    cfg = OmegaConf.create({"optimizer": {"_target_": "torch.optim.SGD", "params": [], "lr": None}})
    with pytest.raises(UserError, match=r"optimizer: .*NoneType"):
        build(cfg, "optimizer")


@pytest.mark.parametrize(
    ("leaf", "key", "classes"),
    [
        ("panoptic/mask2former_comer_s", "sem_seg_head.predictor", 133),
        ("panoptic/eomt_s", "backbone", 133),
        ("instance/eomt_s", "backbone", 80),
        ("mask_rcnn_swin_t_1x", "roi_heads", 80),
    ],
)
def test_classes_of_the_model_are_those_of_the_data(leaf: str, key: str, classes: int) -> None:
    path, name = CONFIG.parent / f"{leaf}.py", f"model.{key}.num_classes"
    check_classes(load_config(str(path), []), "train")
    wrong = load_config(str(path), [f"{name}=7"])
    with pytest.raises(UserError, match=f"has {classes} classes, but {name} is 7: set {name}"):
        check_classes(wrong, "train")


def test_there_are_no_more_loading_processes_than_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3}, raising=False)
    cfg = load_config(str(CONFIG), ["dataloader.test.num_workers=7"])
    assert cfg.dataloader.train.num_workers == 4  # Detectron2's
    settle_workers(cfg, {"dataloader.test.num_workers"})
    assert cfg.dataloader.train.num_workers == 2
    assert cfg.dataloader.test.num_workers == 7  # as asked for


@pytest.mark.parametrize("betas", [[0.9], 0.9])
def test_one_number_where_two_are_needed_names_the_section(betas: list[float] | float) -> None:
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    node = {"_target_": "torch.optim.AdamW", "params": parameters, "betas": betas}
    cfg = OmegaConf.create({"optimizer": node}, flags={"allow_objects": True})
    with pytest.raises(UserError, match=r"^optimizer: .* \(COMER_D2_TRACEBACK=1 shows where\)$"):
        build(cfg, "optimizer")
