"""Every family, with random weights: the ViT branch alone computes what timm's model does.

Of Uni-Perceiver timm has no model: torch's own TransformerEncoderLayer is the oracle.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import pytest
import timm
import torch
from timm.models import beit, eva, vision_transformer
from torch import Tensor, nn

from comer_d2.weights import load_weights
from comer_d2.weights.files import unwrap
from tests.weights import originals
from tests.weights.cases import (
    CASES,
    OTHER,
    SIDE,
    TOLERANCE,
    UNI_PERCEIVER,
    UniPerceiver,
    check_features,
    make_net,
    make_timm,
    randomise,
    state_for,
    timm_features,
    vit_features,
)

WRITTEN = [
    pytest.param(case, layout, id=f"{name}-{layout.__name__}")
    for name, case in CASES.items()
    for layout in (originals.as_it_is, *case.layouts)
]


@pytest.mark.parametrize(("case", "layout"), WRITTEN)
def test_features_and_accounts(case, layout, tmp_path):
    trained = randomise(make_timm(case)).state_dict()
    net = make_net(case)
    path = tmp_path / "weights.pth"
    written = layout(trained)
    torch.save(written, path)

    report = load_weights(net, path, family=case.family)

    check_features(case, net.vit, trained)
    weights, _ = unwrap(written, "")
    assert report.source_elements == sum(t.numel() for t in weights.values())
    assert {entry.source for entry in report.entries} == {
        part.removeprefix("visual.").removeprefix("trunk.") if part.startswith("visual.") else part
        for part in weights
    }
    assert all(entry.note for entry in report.of("not used"))
    assert not report.of("resampled")
    assert not [name for name in report.fresh if name.startswith("vit.")]


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_timms_own_model(case, monkeypatch):
    """What `timm:<id>` does once timm has the weights: no family to be named."""
    model = randomise(make_timm(case))
    net = make_net(case)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: model)
    load_weights(net, f"timm:{case.timm_id}")
    monkeypatch.undo()
    check_features(case, net.vit, model.state_dict())


@pytest.mark.parametrize("layout", UNI_PERCEIVER)
def test_uni_perceiver(layout, tmp_path):
    oracle = UniPerceiver(layout is originals.uni_perceiver_post_norm).double().eval()
    randomise(oracle)
    written = layout(oracle.original())
    torch.save(written, tmp_path / "weights.pth")
    net = make_net(UNI_PERCEIVER[layout])
    report = load_weights(net, tmp_path / "weights.pth")
    for size in ((SIDE, SIDE), OTHER):
        image = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            actual = vit_features(net.vit, image)
        for a, b in zip(actual, oracle.features(image), strict=True):
            assert b.std() > 0.1
            torch.testing.assert_close(a, b, **TOLERANCE)
    weights, _ = unwrap(written, "")
    assert report.source_elements == sum(t.numel() for t in weights.values())
    assert all(entry.note for entry in report.of("not used"))


# Families with their tokens left out, as the released models do, and how timm is told to.
WITHOUT_TOKENS = {
    "deit": dict(class_token=False),
    "dinov2-registers": dict(class_token=False, reg_tokens=0),
    "deit3": dict(class_token=False),
    "dinov3-qkv-bias": dict(class_token=False, num_reg_tokens=0),
    "eva02-base": dict(class_token=False),
}


@pytest.mark.parametrize("name", WITHOUT_TOKENS)
def test_without_class_and_register_tokens(name):
    case = CASES[name]
    source = randomise(make_timm(case)).state_dict()
    net = make_net(case, num_prefix_tokens=0)
    report = load_weights(net, source)
    unused = {entry.source: entry.note for entry in report.of("not used")}
    assert "num_prefix_tokens=0" in unused["cls_token"]
    model = make_timm(case, **WITHOUT_TOKENS[name], global_pool="avg")
    own = model.state_dict()
    trained = {n: t for n, t in source.items() if n in own}
    if "pos_embed" in own:
        trained["pos_embed"] = source["pos_embed"][:, -own["pos_embed"].shape[1] :]
    missing = model.load_state_dict(trained, strict=False).missing_keys
    assert all(n.startswith(("norm.", "fc_norm.")) for n in missing)
    image = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        features = zip(vit_features(net.vit, image), timm_features(model, image), strict=True)
        for actual, expected in features:
            torch.testing.assert_close(actual, expected, **TOLERANCE)


@pytest.mark.parametrize("has_class_rows", [True, False])
@pytest.mark.parametrize("shared", [True, False])
def test_beit_without_a_class_token(has_class_rows, shared):
    """timm's BEiT always has the token: here nobody looks at it."""
    case = CASES["beit-shared-table" if shared else "beit"]
    model = randomise(make_timm(case))
    for name, table in model.named_parameters():
        if name.endswith("relative_position_bias_table"):
            table.data[-2] = -1e9  # token to class
    trained = model.state_dict()
    source = {
        name: t[:-3] if name.endswith("bias_table") and not has_class_rows else t
        for name, t in trained.items()
    }
    net = make_net(case, num_prefix_tokens=0)
    report = load_weights(net, source)
    for size in ((SIDE, SIDE), OTHER):
        model = make_timm(case, size)
        model.load_state_dict(state_for(model, size, trained) if size == OTHER else trained)
        image = torch.randn(2, 3, *size, dtype=torch.float64)
        with torch.no_grad():
            expected = [tokens[:, 1:] for tokens in timm_features(model, image)]
            for a, b in zip(vit_features(net.vit, image), expected, strict=True):
                torch.testing.assert_close(a, b, **TOLERANCE)
    notes = [e.note for e in report.entries if e.source.endswith("bias_table")]
    assert all(("without the rows of the class token" in n) == has_class_rows for n in notes)


def resized(model: nn.Module, source: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as timm itself fits them to a model of another size."""
    module = {"Beit": beit, "Eva": eva}.get(type(model).__name__, vision_transformer)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return module.checkpoint_filter_fn(dict(source), model)


RESAMPLED: dict[str, dict[str, Any]] = {
    "augreg-384": dict(img_size=SIDE + 32),
    "dinov2": dict(patch_size=14, img_size=70),
    "dinov2-registers": dict(patch_size=14, img_size=42),
    "deit3": dict(img_size=32),
    "clip": dict(patch_size=32, img_size=64),
    "siglip2": dict(img_size=SIDE + 32),
    "beit": dict(img_size=SIDE + 32),
    "dinov3": dict(patch_size=14, img_size=56),
    "eva02-base": dict(patch_size=14, img_size=70),
}


@pytest.mark.parametrize("name", RESAMPLED)
def test_other_sizes_are_resampled_as_timm_does(name):
    """Patch kernels and positions of the pretraining's size, in a network of another."""
    case, changes = CASES[name], RESAMPLED[name]
    source = randomise(make_timm(case, **changes)).state_dict()
    net = make_net(case)
    report = load_weights(net, source, family=case.family)
    model = make_timm(case)
    model.load_state_dict(resized(model, source))
    image = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    with torch.no_grad():
        features = zip(vit_features(net.vit, image), timm_features(model, image), strict=True)
        for actual, expected in features:
            torch.testing.assert_close(actual, expected, **TOLERANCE)
    expected = {"patch_embed.proj.weight"} if "patch_size" in changes else set()
    grid = changes["img_size"] // changes.get("patch_size", 16)
    if grid != SIDE // 16:
        tables = ("pos_embed", "relative_position_bias_table")
        expected |= {n for n in source if n.endswith(tables)}
    assert {entry.source for entry in report.of("resampled")} == expected
    assert all(entry.note for entry in report.of("resampled"))
