"""The authors' backbone: names and constructor arguments, there and back."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file

from comer_d2.network import ViTCoMerNet
from comer_d2.weights import WeightsError, convert_weights, load_weights, official_arguments
from comer_d2.weights.origins.vit_comer import INDEX, OUTER_NORM
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
    window_size=2,
    window_block_indexes=None,
    stem_width=4,
    interaction_indexes=[[0, 0], [1, 1]],
    deform_num_heads=3,
    num_extra_cti=1,
)
Weights = dict[str, torch.Tensor]


def network(**arguments) -> ViTCoMerNet:
    """A small network of this project, nothing in it zero or one."""
    net = make_network(**(NETWORK | arguments))
    for tensor in net.state_dict().values():
        tensor.copy_(torch.randn(tensor.shape) if tensor.is_floating_point() else tensor)
    return net


def to_official(net: ViTCoMerNet) -> Weights:
    return convert_weights(net, net.state_dict(), "official")[0]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


WRAPPED = {
    "bare": lambda weights: weights,
    "prefixed": lambda weights: {f"backbone.{n}": t for n, t in weights.items()},
    "of a detector": lambda weights: (
        {f"backbone.{n}": t for n, t in weights.items()}
        | {"query_head.label_embedding.weight": torch.ones(2, 3), "neck.convs.0.gn.bias": VECTOR}
    ),
}
VECTOR = torch.ones(4)


@pytest.mark.parametrize("wrapping", WRAPPED)
def test_every_wrapping(wrapping):
    """Of other detectors, Co-DETR's, it is the backbone; every tensor of the rest is listed."""
    net, other = network(), network()
    official = WRAPPED[wrapping](to_official(net))
    report = load_weights(other, official)
    assert same(other.state_dict(), net.state_dict())
    unused = {e.source: (e.elements, e.note) for e in report.of("not used")}
    if wrapping == "of a detector":
        assert unused == {
            "query_head.label_embedding.weight": (6, "not of the backbone"),
            "neck.convs.0.gn.bias": (4, "not of the backbone"),
        }
    assert report.source_elements == sum(t.numel() for t in official.values())


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
    net = network()
    with pytest.raises(WeightsError, match=rf"the authors' ViT-CoMer.*not fit: {name} \("):
        load_weights(net, to_official(net) | {name: torch.zeros(1)})


@pytest.mark.golden(BACKBONES)
def test_there_and_back_is_the_identity(golden_path):
    """The authors' networks: all names and values, but those of norms that they never use."""
    official = {
        name.removeprefix("param."): tensor
        for name, tensor in load_file(golden_path).items()
        if name.startswith("param.")
    }
    config = json.loads(golden_path.with_suffix(".json").read_text())["config"]
    net = official_network(config)
    report = load_weights(net, official, complete=True)
    assert report.source_elements == sum(t.numel() for t in official.values())
    assert not report.fresh
    unused = {entry.source for entry in report.of("not used")}
    assert all(name.endswith(INDEX) or OUTER_NORM.fullmatch(name) for name in unused)

    back = to_official(net)
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
    net, other = network(**arguments), network(**arguments)
    load_weights(other, to_official(net), complete=True)
    assert same(other.state_dict(), net.state_dict())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(num_prefix_tokens=1), "no names for vit.prefix_tokens"),
        (dict(pre_norm_eps=1e-5), "no names for vit.norm_pre.weight, vit.norm_pre.bias"),
        (dict(mlp="swiglu"), "no names for vit.blocks.0.mlp.fc1_g.weight"),
        (dict(qkv_bias="qv"), "no bias of k and no relative positions"),
        (dict(use_mrfp=False), "'interactions.0' has only one of MRFP and CTI to V"),
        (dict(mrfp_kernel_sizes=(3, 7)), "has a kernel of 7, the authors' has 5"),
        (dict(pretrain_use_cls_token=False), "'pos_embed' has no row of a class token"),
    ],
    ids=str,
)
def test_what_the_authors_network_cannot_hold(arguments, message):
    with pytest.raises(WeightsError, match=message):
        to_official(network(**arguments))


def mutations(weights: Weights):
    """Name, change, and what the error must say."""
    nan = weights["blocks.1.mlp.fc2.weight"].clone()
    nan[0, 0] = torch.nan
    return {
        "missing": ("blocks.1.mlp.fc2.bias", None, "vit.blocks.1.mlp.fc2.bias: missing"),
        "half": (
            "interactions.1.cti_tov.attn.attention_weights.bias",
            None,
            "'interactions.1.cti_tov.attn.attention_weights.bias' is missing",
        ),
        "shape": (
            "interactions.1.cti_tov.attn.value_proj.bias",
            torch.zeros(7),
            "cti_to_v.attn.value_proj.bias: of shape (7,), in the model (6,)",
        ),
        "transposed": (
            "blocks.0.mlp.fc1.weight",
            weights["blocks.0.mlp.fc1.weight"].t(),
            "vit.blocks.0.mlp.fc1.weight: of shape (12, 48), in the model (48, 12)",
        ),
        "type": (
            "norm1.bias",
            torch.zeros(12, dtype=torch.long),
            "out_norms.0.bias: of torch.int64",
        ),
        "nan": ("blocks.1.mlp.fc2.weight", nan, "'blocks.1.mlp.fc2.weight' has NaN or infinite"),
        "the other variant's": (
            "interactions.0.injector.gamma",
            torch.zeros(12),
            "not fit: interactions.0.injector.gamma",
        ),
        "unexpected": (
            "blocks.5.norm1.bias",
            torch.zeros(12),
            "vit.blocks.5.norm1.bias: without a",
        ),
        "positions": ("pos_embed", torch.zeros(1, 6, 12), "vit.pos_embed: of shape (1, 6, 12)"),
    }


@pytest.mark.parametrize("kind", mutations(to_official(network())))
def test_a_damaged_checkpoint_is_an_error(kind):
    net = network()
    official = to_official(net)
    name, value, message = mutations(official)[kind]
    official[name] = value
    if value is None:
        del official[name]
    with pytest.raises(WeightsError, match=re.escape(message)):
        load_weights(net, official)


def test_foreign_relative_positions_are_an_error():
    net = network(use_rel_pos_bias=True, qkv_bias="qv")
    official = to_official(net)
    name = f"blocks.0.{INDEX}"
    official[name] = official[name].flip(0)
    with pytest.raises(WeightsError, match=rf"'backbone\.{name}' of shape \(4, 4\) is not the rel"):
        load_weights(net, {f"backbone.{n}": t for n, t in official.items()})


def test_arguments_of_the_detection_network():
    arguments = official_arguments(DET)
    assert arguments["vit"]["window_size"] == [3, 0]
    assert arguments["cnn_feature_interaction"] is False  # the authors' default in detection
    assert (arguments["vit_features"], arguments["mrfp_ratio"]) == ("last", 0.5)
    official_network(DET)


@pytest.mark.parametrize("with_cffn", [True, False])
def test_with_cffn(with_cffn):
    """Without, their network has no feed-forward networks and norms of these, in both CTI."""
    config = DET | {"with_cffn": with_cffn, "cnn_feature_interaction": True}
    net, other = official_network(config), official_network(config)
    official = to_official(net)
    assert any(".ffn" in name for name in official) == with_cffn
    load_weights(other, official, complete=True)
    assert same(other.state_dict(), net.state_dict())


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
