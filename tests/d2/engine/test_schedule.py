"""Warm-up in iterations, in runs of any length."""

from pathlib import Path

import pytest
from detectron2.config import instantiate
from fvcore.common.param_scheduler import ConstantParamScheduler, PolynomialDecayParamScheduler

from comer_d2.d2.engine.config import load_config
from comer_d2.d2.engine.schedule import WarmupIterations

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.mark.parametrize(
    ("leaf", "warmup"),
    [
        ("COCO/mask_rcnn_comer_s_1x.py", 500),
        ("COCO/cascade_mask_rcnn_comer_s.py", 250),
        ("COCO/instance/mask2former_comer_s.py", 10),
        ("ADE20K/semantic/upernet_comer_s.py", 1500),
    ],
)
def test_a_shortened_run_warms_up_as_long_as_the_recipe_says(leaf: str, warmup: int) -> None:
    cfg = load_config(str(CONFIGS / leaf), ["train.max_iter=2000"])
    multiplier = instantiate(cfg.lr_multiplier)
    unwarmed = instantiate(cfg.lr_multiplier.scheduler)
    factors = [multiplier(i / 2000) / unwarmed(i / 2000) for i in range(1990)]
    assert factors[0] < 0.01
    assert factors[warmup // 2] == pytest.approx(0.5, abs=0.01)
    assert max(factors[:warmup]) < 1
    assert factors[warmup:] == [1.0] * (1990 - warmup)


def test_milestones_keep_their_shares_of_a_shortened_run() -> None:
    cfg = load_config(str(CONFIGS / "COCO/mask_rcnn_comer_s_1x.py"), ["train.max_iter=3000"])
    multiplier = instantiate(cfg.lr_multiplier)
    assert [multiplier(i / 3000) for i in (1990, 2010, 2740, 2760)] == pytest.approx(
        [1.0, 0.1, 0.1, 0.01]
    )


def test_a_warm_up_longer_than_the_run_is_cut() -> None:
    scheduler = WarmupIterations(
        ConstantParamScheduler(1.0), max_iter=10, warmup_iters=100, warmup_factor=0.0
    )
    assert [scheduler(i / 10) for i in (0, 5, 9)] == pytest.approx([0.0, 0.05, 0.09])


def test_no_warm_up_is_the_schedule_itself() -> None:
    decay = PolynomialDecayParamScheduler(base_value=1.0, power=0.9)
    scheduler = WarmupIterations(decay, max_iter=10, warmup_iters=0, warmup_factor=0.1)
    assert [scheduler(i / 10) for i in range(10)] == [decay(i / 10) for i in range(10)]
