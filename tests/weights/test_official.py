"""The authors' backbone: names and constructor arguments, there and back."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from comer_d2.weights import WeightsError, convert_official, official_arguments, to_official
from comer_d2.weights.official import INDEX, OUTER_NORM, is_official, official_backbone
from tests.networks import make_network, official_network

BACKBONES = "[dsb]e*_tiny*.safetensors"  # detection, segmentation, BEiT
DET = {
    "pretrain_size": 64,
    "img_size": 64,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 3,
    "deform_num_heads": 3,
    "interaction_indexes": [[0, 0], [1, 1]],
    "conv_inplane": 8,
    "window_attn": [True, False],
    "window_size": [3, None],
}
NETWORK = dict(
    embed_dim=12,
    depth=2,
    num_heads=3,
    pretrain_img_size=32,
    stem_width=4,
    interaction_indexes=[[0, 0], [1, 1]],
    window_size=2,
    window_block_indexes=None,
    deform_num_heads=3,
    num_extra_cti=1,
)


def official_state_dict() -> dict[str, torch.Tensor]:
    """A few tensors by the authors' names, enough to be recognised."""
    return {
        "level_embed": torch.zeros(3, 24),
        "blocks.0.gamma1": torch.ones(24),
        "spm.stem.6.weight": torch.ones(8, 8, 3, 3),
        "interactions.0.mrfp.dwconv.dwconv4.bias": torch.ones(6),
        "interactions.1.extra_CTIs.2.cfinter.ffn.dwconv.dwconv.bias": torch.ones(6),
    }


def own_weights(**arguments) -> dict[str, torch.Tensor]:
    """A small network of this project, nothing in it zero or one."""
    weights = make_network(**(NETWORK | arguments)).state_dict()
    for tensor in weights.values():
        tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else tensor)
    return weights


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda sd: sd,
        lambda sd: {"backbone." + k: v for k, v in sd.items()},
        lambda sd: {"state_dict": sd, "meta": {"epoch": 12}},
        lambda sd: {"model": {"backbone." + k: v for k, v in sd.items()}, "optimizer": {}},
        lambda sd: {
            "state_dict": {"backbone." + k: v for k, v in sd.items()}
            | {"rpn_head.rpn_cls.weight": torch.ones(1)}
        },
    ],
    ids=["bare", "prefixed", "state_dict", "model", "detector"],
)
def test_every_wrapping(wrap):
    assert set(convert_official(wrap(official_state_dict()))) == {
        "level_embed",
        "vit.blocks.0.ls1.gamma",
        "pyramid.stem.2.0.weight",
        "interactions.0.mrfp.convs.1.1.bias",
        "interactions.1.extra_cti.2.feature_interaction.ffn.ffn.dwconv.bias",
    }


@pytest.mark.parametrize(
    "name",
    [
        "cls_token",
        "blocks.0.attn.qkv.wieght",
        "blocks.0.attn.unknown.weight",
        "blocks.0.gamma3",
        "interactions.0.mrfp.dwconv.dwconv7.bias",
        "interactions.0.cti_tov.cfinter.attn.value_proj.weight",
        "spm.stem.2.weight",
    ],
)
def test_a_foreign_name_is_an_error(name):
    with pytest.raises(WeightsError, match=rf"'{name}' is not a tensor of the authors'"):
        convert_official(official_state_dict() | {name: torch.zeros(1)})


def test_another_model_is_an_error():
    with pytest.raises(ValueError, match=r"no 'interactions\.\*' tensors.*blocks\.0\.norm1"):
        convert_official({"blocks.0.norm1.weight": torch.zeros(3)})


def test_recognised_by_names():
    assert is_official(official_state_dict())
    assert is_official("backbone." + name for name in official_state_dict())
    assert not is_official(make_network(**NETWORK).state_dict())
    assert not is_official(["blocks.0.norm1.weight", "patch_embed.proj.weight", "pos_embed"])


@pytest.mark.golden(BACKBONES)
def test_there_and_back_is_the_identity(golden_path):
    """The authors' networks: all names and values, but those of norms that they never use."""
    official = {
        name.removeprefix("param."): tensor
        for name, tensor in load_file(golden_path).items()
        if name.startswith("param.")
    }
    config = json.loads(golden_path.with_suffix(".json").read_text())["config"]
    books = official_backbone(official)
    assert sum(p.elements for p in books.parts) == sum(t.numel() for t in official.values())
    official_network(config).load_state_dict(books.tensors, strict=True)
    unused = {part.source for part in books.parts if part.target is None}
    assert all(name.endswith(INDEX) or OUTER_NORM.fullmatch(name) for name in unused)

    back = to_official(books.tensors)
    assert back.keys() == official.keys()
    never_used = {name for name in unused if not name.endswith(INDEX)}
    for name, tensor in back.items():
        if name in never_used:
            assert torch.equal(tensor, torch.full_like(tensor, float(name.endswith("weight"))))
        else:
            assert torch.equal(tensor, official[name]) and tensor.dtype == official[name].dtype


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        dict(cnn_feature_interaction=[False, True]),
        dict(num_extra_cti=0),
        dict(layer_scale_init=None, qkv_bias="none"),
        dict(cffn_ratio=None),
        dict(use_mrfp=[True, False], use_cti_to_v=[True, False]),
        dict(use_rel_pos_bias=True, qkv_bias="qv", use_abs_pos=False, window_size=[2, 3]),
        dict(
            use_rel_pos_bias=True,
            qkv_bias="qv",
            window_size=[2, 0],
            cnn_feature_interaction=False,
        ),
        dict(in_chans=4, mlp_ratio=2.0, deform_ratio=0.25, cffn_ratio=0.5, mrfp_ratio=1.0),
    ],
    ids=str,
)
def test_back_and_there_is_the_identity(arguments):
    weights = own_weights(**arguments)
    official = to_official(weights)
    assert is_official(official)
    assert same(official_backbone(official).tensors, weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_prefix_tokens=1), "has no 'vit.prefix_tokens'"),
        (dict(pre_norm_eps=1e-5), "has no 'vit.norm_pre.weight', 'vit.norm_pre.bias'"),
        (dict(mlp="swiglu"), "has no 'vit.blocks.0.mlp.fc1_g.weight'"),
        (dict(qkv_bias="qv"), "has no 'vit.blocks.0.attn.qkv.q_bias'"),
        (dict(use_mrfp=False), "interaction 0 has only one of MRFP and CTI to V"),
        (dict(mrfp_kernel_sizes=(3, 7)), "has shape (3, 1, 7, 7), not (3, 1, 5, 5)"),
        (dict(pretrain_use_cls_token=False), "'vit.pos_embed' has shape"),
    ],
    ids=str,
)
def test_what_the_authors_network_cannot_hold(arguments, message):
    with pytest.raises(WeightsError, match=re.escape(message)):
        to_official(own_weights(**arguments))


def mutations(weights):
    """Name, change, and what the error must say."""
    nan = weights["blocks.1.mlp.fc2.weight"].clone()
    nan[0, 0] = torch.nan
    return {
        "missing": ("blocks.1.mlp.fc2.bias", None, "missing: 'vit.blocks.1.mlp.fc2.bias'"),
        "no depth": ("patch_embed.proj.weight", None, "'vit.patch_embed.proj.weight' is missing"),
        "shape": (
            "interactions.1.cti_tov.attn.value_proj.bias",
            torch.zeros(7),
            "'interactions.1.cti_to_v.attn.value_proj.bias' has shape (7,), not (6,)",
        ),
        "transposed": (
            "blocks.0.mlp.fc1.weight",
            weights["blocks.0.mlp.fc1.weight"].t(),
            "'vit.blocks.0.mlp.fc1.bias' has shape (48,), not (12,)",
        ),
        "type": ("norm1.bias", torch.zeros(12, dtype=torch.long), "'out_norms.0.bias' is of torch"),
        "nan": (
            "blocks.1.mlp.fc2.weight",
            nan,
            "'vit.blocks.1.mlp.fc2.weight' has NaN or infinite",
        ),
        "twice": (
            "interactions.0.injector.gamma",
            torch.zeros(12),
            "two tensors stand for 'interactions.0.cti_to_v.gamma'",
        ),
        "unexpected": (
            "blocks.5.norm1.bias",
            torch.zeros(12),
            "missing: 'vit.blocks.1.norm1.weight'",
        ),
        "positions": ("pos_embed", torch.zeros(1, 6, 12), "'vit.pos_embed' has shape (1, 6, 12)"),
    }


@pytest.mark.parametrize("kind", mutations(to_official(own_weights())))
def test_a_damaged_checkpoint_is_an_error(kind):
    official = to_official(own_weights())
    name, value, message = mutations(official)[kind]
    official[name] = value
    if value is None:
        del official[name]
    if kind == "unexpected":
        message = "missing: 'vit.blocks."
    with pytest.raises(WeightsError, match=re.escape(message)):
        official_backbone(official)


def test_foreign_relative_positions_are_an_error():
    official = to_official(own_weights(use_rel_pos_bias=True, qkv_bias="qv"))
    name = "blocks.0" + INDEX
    official[name] = official[name].flip(0)
    with pytest.raises(WeightsError, match=rf"'backbone\.{name}' of shape \(4, 4\) is not the rel"):
        official_backbone({"backbone." + n: t for n, t in official.items()})


def test_arguments_of_the_detection_network():
    arguments = official_arguments(DET)
    assert arguments["vit"]["window_size"] == [3, 0]
    assert arguments["cnn_feature_interaction"] is False  # the authors' default in detection
    assert (arguments["vit_features"], arguments["mrfp_ratio"]) == ("last", 0.5)
    official_network(DET)


def test_defaults_of_the_segmentation_network():
    arguments = official_arguments(DET | {"variant": "seg"})
    assert arguments["vit_features"] == "stages"
    assert arguments["cnn_feature_interaction"] is True
    assert arguments["mrfp_ratio"] == 6.0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variant": "cls"}, "variant must be one of .* got 'cls'"),
        ({"patch_size": 14}, "patch_size=14 is not supported, only 16"),
        ({"img_size": 80}, r"must agree, got \[64, 80\]"),
        ({"with_cfn": True}, r"unknown arguments .* \['with_cfn'\]"),
        ({"window_attn": [True]}, "must name 2 blocks"),
    ],
)
def test_arguments_that_have_no_meaning_here(changes, message):
    with pytest.raises(ValueError, match=message):
        official_arguments(DET | changes)
