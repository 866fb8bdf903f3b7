"""What follows from the data and the batch, and which of two contradicting keys counts."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from detectron2.config import instantiate
from omegaconf import DictConfig

from comer_d2.d2.engine.config import load_config
from comer_d2.d2.engine.derived import derive
from comer_d2.d2.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"
PHOTOS = SimpleNamespace(num_images=367)


def load(leaf: str, *overrides: str) -> DictConfig:
    return load_config(str(CONFIGS / leaf), overrides)


def test_the_authors_recipe_in_epochs_of_367_images() -> None:
    cfg = load("COCO/mask_rcnn_comer_s_1x.py", "train.epochs=12", "train.accumulation_steps=2")
    (note,) = derive(cfg, PHOTOS)
    assert cfg.train.max_iter == 138  # 12 * 367 / 32 = 137.6
    assert cfg.train.eval_period == cfg.train.checkpointer.period == 12  # a twelfth, as on COCO
    assert cfg.lr_multiplier.warmup_iters == 6  # a twentieth, not 500
    assert cfg.optimizer.lr == 1e-4  # a published rate stays
    assert "12 x 367 images / 32 an update = 138 iterations" in note
    rate = instantiate(cfg.lr_multiplier)
    assert rate(8 / 12 - 0.01) == pytest.approx(1.0)  # milestones keep their shares
    assert rate(8 / 12 + 0.01) == pytest.approx(0.1)


def test_the_rate_grows_with_the_root_of_the_batch() -> None:
    cfg = load("custom/mask_rcnn_comer_s.py", "dataloader.train.total_batch_size=8")
    notes = derive(cfg, PHOTOS)
    assert cfg.optimizer.lr == pytest.approx(8e-4 * (8 / 16) ** 0.5)
    assert "root of 8/16" in notes[1]
    cfg = load("custom/mask_rcnn_comer_s.py", "optimizer.lr=3e-4")
    derive(cfg, PHOTOS)
    assert cfg.optimizer.lr == 3e-4  # as given


def test_a_saved_config_derives_the_same_again() -> None:
    cfg = load("custom/mask2former_comer_s_semantic.py")
    derive(cfg, PHOTOS)
    before = cfg.copy()
    derive(cfg, PHOTOS)
    assert cfg.train == before.train
    assert cfg.optimizer.lr == before.optimizer.lr
    assert cfg.lr_multiplier == before.lr_multiplier
    assert cfg.train.max_iter == 3670


def test_periods_of_the_command_line_are_iterations() -> None:
    given = ["train.eval_period=50", "lr_multiplier.warmup_iters=300", "train.epochs=2"]
    cfg = load("custom/mask2former_comer_s_semantic.py", *given)
    derive(cfg, PHOTOS, {entry.partition("=")[0] for entry in given})
    assert (cfg.train.max_iter, cfg.train.eval_period) == (184, 50)
    assert cfg.train.checkpointer.period == 18
    assert cfg.lr_multiplier.warmup_iters == 300


def test_a_short_run_is_evaluated_once_an_epoch() -> None:
    cfg = load("custom/mask_rcnn_comer_s.py", "train.epochs=4")
    note = derive(cfg, SimpleNamespace(num_images=12))[0]
    assert (cfg.train.max_iter, cfg.train.eval_period, cfg.train.checkpointer.period) == (12, 3, 1)
    assert "evaluation every 3" in note


def test_the_command_lines_length_counts_and_two_are_an_error() -> None:
    cfg = load("custom/mask_rcnn_comer_s.py", "train.max_iter=70")
    assert len(derive(cfg, PHOTOS)) == 1  # the rate
    assert cfg.train.max_iter == 70
    with pytest.raises(UserError, match=r"train\.epochs and train\.max_iter both"):
        load("custom/mask_rcnn_comer_s.py", "train.max_iter=70", "train.epochs=3")
    for value in ("0", "-2"):
        with pytest.raises(UserError, match=r"train\.epochs=.* must be"):
            load("custom/mask_rcnn_comer_s.py", f"train.epochs={value}")


def test_a_loader_that_does_not_tell_its_images_is_named() -> None:
    with pytest.raises(UserError, match="build_train_loader"):
        derive(load("custom/mask_rcnn_comer_s.py"), object())
