"""Overrides from the command line: what is there is changed, what is not is an error."""

from __future__ import annotations

import functools

import pytest
from detectron2.config import LazyCall as L
from omegaconf import DictConfig
from torch import nn

from comer_d2.d2.engine.overrides import apply_overrides
from comer_d2.d2.errors import UserError


@pytest.fixture
def cfg() -> DictConfig:
    content = {
        "train": {"max_iter": 10, "amp": {"enabled": False}, "output_dir": "./output"},
        "model": {
            "backbone": L(nn.Conv2d)(in_channels=3, out_channels=8, kernel_size=1),
            "stages": [{"width": 8}, {"width": 16}],
            "norm": functools.partial(nn.GroupNorm, 4),
            "width": "${.stages.0.width}",
        },
    }
    return DictConfig(content, flags={"allow_objects": True})


def test_changes_values_groups_and_list_items(cfg: DictConfig) -> None:
    apply_overrides(
        cfg,
        [
            "train.max_iter=20",
            "model.stages.1.width=32",
            "train.amp={enabled: true}",
            "model.norm=BN",
        ],
    )
    assert cfg.train.max_iter == 20
    assert cfg.model.stages[1].width == 32
    assert cfg.train.amp.enabled is True
    assert cfg.model.norm == "BN"


def test_an_interpolation_can_be_replaced(cfg: DictConfig) -> None:
    apply_overrides(cfg, ["model.width=5"])
    assert cfg.model.width == 5


@pytest.mark.parametrize("value", ["https://host/a.pth?x=1", "/tmp/a b/c-d.pth", "bbox/AP"])
def test_paths_and_addresses_need_no_quotes(cfg: DictConfig, value: str) -> None:
    apply_overrides(cfg, [f"train.output_dir={value}"])
    assert cfg.train.output_dir == value


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("train.max_itr=5", "did you mean 'train.max_iter'"),
        ("max_iter=5", "did you mean 'train.max_iter'"),
        ("model.stages.0.widht=5", "did you mean 'model.stages.0.width'"),
        ("model.backbone.out_chanels=5", "did you mean 'model.backbone.out_channels'"),
        ("model.stages.2.width=5", "'model.stages' is a list of 2"),
        ("model.norm.num_groups=2", "functools.partial, not a group of keys"),
        ("train.max_iter.x=2", "the value 10, not a group of keys"),
        ("train.amp=true", r"a group of keys \(enabled\)"),
        ("train.amp={enable: true}", "did you mean 'train.amp.enabled'"),
        ("train.max_iter", "not of the form key=value"),
        ("train.max_iter=[1", "cannot be read"),
    ],
)
def test_what_is_not_there_is_one_clear_error(cfg: DictConfig, override: str, hint: str) -> None:
    before = cfg.copy()
    with pytest.raises(UserError, match=hint):
        apply_overrides(cfg, [override])
    assert cfg == before


def test_a_parameter_that_the_config_leaves_at_its_default_can_be_given(cfg: DictConfig) -> None:
    apply_overrides(cfg, ["model.backbone.bias=false"])
    assert cfg.model.backbone.bias is False


def test_a_plus_adds_a_key_on_purpose(cfg: DictConfig) -> None:
    apply_overrides(cfg, ["+train.note=mine"])
    assert cfg.train.note == "mine"
