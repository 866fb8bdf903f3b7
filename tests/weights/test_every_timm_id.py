"""Every ViT that timm has, small and with random weights: refused, or with timm's own features.

That a table fits says nothing about what a model computes, so features are compared, not names.
"""

import fnmatch
import re
from typing import Any

import pytest
import timm
import torch
from torch import nn

from comer_d2.network import ViT
from comer_d2.network.vit import ROPE
from comer_d2.weights import WeightsError, load_weights
from comer_d2.weights.timm_hub import timm_computation
from tests.weights.cases import TOLERANCE, randomise, timm_features, vit_features

IDS = [
    name
    for module in ("vision_transformer", "eva", "beit", "deit")
    for name in timm.list_models(module=module)
]
# What no network here computes, and why.
REFUSED = (
    ("aimv2_*", "RMS norms"),
    ("beit3_*", "norms inside both branches, and the ViT's own names"),
    ("eva_giant_*", "EVA, the first: no gates"),
    ("eva02_enormous_*", "norms after the branches"),
    ("vit_*_rope_mixed_*", "learnt rotary positions"),
    ("vit_*_rope_reg*_gap_*", "rotary positions without a class token"),
    ("vit_*_sapiens2", "groups of queries"),
    ("vit_*_xp_*", "parallel branches"),
    ("vit_*_18x2_*", "parallel branches"),
    ("vit_*_rpn_*", "norms after the branches"),
    ("vit_pwee_*", "parallel branches"),
    ("vit_dpwee_*", "differential attention"),
    ("vit_dwee_*", "differential attention"),
    ("vit_dlittle_*", "differential attention"),
    ("test_vit4", "RMS norms"),
)


def make_small(name: str) -> nn.Module:
    """timm's model with two blocks and a grid of 4 x 4, in float64."""
    arguments: dict[str, Any] = dict(depth=2, img_size=64, patch_size=16, num_classes=0)
    arguments |= dict(embed_dim=32, num_heads=2)
    if "sapiens2" in name:
        arguments |= dict(num_kv_heads=1)
    if "pe_core" in name:
        arguments |= dict(attn_pool_num_heads=2)
    if "_pe_" in name:  # as Meta's own code, which does not scale positions
        arguments |= dict(ref_feat_shape=(4, 4))
    torch.manual_seed(0)
    model = timm.create_model(name, **arguments).double().eval()
    return randomise(model)


def vit_for(model: nn.Module) -> ViT:
    """The ViT of a timm model's sizes, by its attributes; plain where no ViT here computes so."""
    names = model.state_dict()
    try:
        computes = timm_computation(model, "")
    except WeightsError:
        computes = {"num_heads": 2}
    if computes.get("rope") not in ROPE:
        computes["rope"] = None
    if computes.get("mlp") not in ("gelu", "gelu_tanh", "quick_gelu", "swiglu"):
        computes["mlp"] = "gelu"
    fc2 = names.get("blocks.0.mlp.fc2.weight", torch.empty(32, 128))
    biases = {"blocks.0.attn.q_bias", "blocks.0.attn.q_proj.bias"} & names.keys()
    return ViT(
        embed_dim=model.embed_dim,
        depth=2,
        mlp_ratio=(fc2.shape[1] + 0.5) / model.embed_dim,
        window_size=0,
        window_block_indexes=(),
        pretrain_img_size=64,
        num_prefix_tokens=model.num_prefix_tokens,
        use_abs_pos=model.pos_embed is not None,
        qkv_bias="qv" if biases or computes.get("use_rel_pos_bias") else "qkv",
        sub_norms=[part for part in ("attn", "mlp") if f"blocks.0.{part}.norm.weight" in names],
        **computes,
    ).double()


def assert_same_features(vit: ViT, model: nn.Module) -> None:
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = timm_features(model, image)
        for a, b in zip(vit_features(vit, image), expected, strict=True):
            assert b.std() > 0.1
            torch.testing.assert_close(a, b, **TOLERANCE)


@pytest.mark.parametrize("name", IDS)
def test_features_or_an_error(name, monkeypatch):
    model = make_small(name)
    refused = [why for pattern, why in REFUSED if fnmatch.fnmatchcase(name, pattern)]
    vit, weights = vit_for(model), model.state_dict()
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: model)
    if refused:
        for source in (f"timm:{name}", weights):
            with pytest.raises(WeightsError):
                load_weights(vit, source)
        return
    load_weights(vit, f"timm:{name}")
    assert_same_features(vit, model)

    # By names alone: the same, or the families that it can be of are named.
    vit = vit_for(model)
    try:
        load_weights(vit, weights)
    except WeightsError as e:
        families = re.findall(r"'([\w-]+)'", str(e).split("can be ")[1].split(":")[0])
        assert len(families) > 1
        loaded = []
        for family in families:
            try:
                load_weights(vit, weights, family=family)
            except WeightsError as other:
                assert "the weights need" in str(other)
            else:
                loaded.append(family)
        assert len(loaded) == 1
    assert_same_features(vit, model)


def test_that_these_are_among_them():
    """Ids that once loaded without a proof, and a family that was taken for another."""
    accepted = [n for n in IDS if not any(fnmatch.fnmatchcase(n, p) for p, _ in REFUSED)]
    for pattern, count in (
        ("*_tipsv2", 4),
        ("*_lingbot", 4),
        ("*_dinov3*", 12),
        ("*giant*_dinov2", 2),
        ("*siglip*", 30),
        ("vit_pe_*", 12),
        ("*_radio_*", 6),
    ):
        assert len(fnmatch.filter(accepted, pattern)) >= count, pattern
