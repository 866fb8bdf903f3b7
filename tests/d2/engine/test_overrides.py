"""Overrides from the command line: what is there is changed, what is not is an error."""

from __future__ import annotations

import functools

import pytest
from detectron2.config import LazyCall as L
from omegaconf import DictConfig
from torch import nn

from comer_d2.d2.engine.overrides import apply_overrides, text_override
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
        (
            "train.output_dir=a,b",
            r"list write 'train.output_dir=\[a,b\]', for text 'train.output_dir=\"a,b\"'",
        ),
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


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_iter=fast", r"'train\.max_iter=fast' is text, but .* a number \(now 10\)"),
        ("train.max_iter=true", "is true or false, but 'train.max_iter' holds a number"),
        ("train.max_iter=[1,fast]", "is text, but"),
        ("train.max_iter={a: 1}", "is a group of keys, but"),
        ("train.amp.enabled=1", "is a number, but 'train.amp.enabled' holds true or false"),
        ("train.amp={enabled: often}", "is text, but 'train.amp.enabled' holds true or false"),
        ("train.output_dir=2024", r"holds text .*quote it: 'train\.output_dir=\"2024\"'"),
        ("model.stages=[flip]", "is text, but 'model.stages' holds a group of keys"),
    ],
)
def test_a_value_of_another_kind_names_its_key(
    cfg: DictConfig, override: str, message: str
) -> None:
    before = cfg.copy()
    with pytest.raises(UserError, match=message):
        apply_overrides(cfg, [override])
    assert cfg == before


@pytest.mark.parametrize(
    "override",
    [
        "train.max_iter=1e3",
        "train.max_iter=[1,2]",
        "train.max_iter=null",
        "train.max_iter=${.other}",
        'train.output_dir="2024"',
        "train.output_dir=[a,b]",
        "model.norm=BN",
        "model.stages=[]",
        "model.stages=[{width: 1}]",
        "model.width=text",
    ],
)
def test_a_value_of_the_same_kind_may_have_another_form(cfg: DictConfig, override: str) -> None:
    apply_overrides(cfg, [override])


@pytest.mark.parametrize(
    "text", ["12", "a,b", "[a]", "null", "${y}", "a=b c", 'a"b', "C:\\runs\\", 'x\\"y']
)
def test_text_override_keeps_a_text_as_it_is(cfg: DictConfig, text: str) -> None:
    apply_overrides(cfg, [text_override("train.output_dir", text)])
    assert cfg.train.output_dir == text
