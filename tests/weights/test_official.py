"""The authors' state dicts and constructor arguments."""

import pytest
import torch

from comer_d2.network import ViTCoMerNet
from comer_d2.weights import convert_official, official_arguments

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


def official_state_dict() -> dict[str, torch.Tensor]:
    """A few tensors by the authors' names, enough to be recognised."""
    return {
        "level_embed": torch.zeros(3, 24),
        "blocks.0.gamma1": torch.ones(24),
        "spm.stem.6.weight": torch.ones(8, 8, 3, 3),
        "interactions.0.mrfp.dwconv.dwconv4.bias": torch.ones(6),
        "interactions.1.extra_CTIs.2.cfinter.ffn.dwconv.dwconv.bias": torch.ones(6),
    }


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
        "blocks.0.ls1.gamma",
        "pyramid.stem.2.0.weight",
        "interactions.0.mrfp.convs.1.1.bias",
        "interactions.1.extra_cti.2.feature_interaction.ffn.ffn.dwconv.bias",
    }


def test_a_foreign_name_is_an_error():
    with pytest.raises(ValueError, match=r"'cls_token' is not a tensor of the authors'"):
        convert_official(official_state_dict() | {"cls_token": torch.zeros(1)})


def test_another_model_is_an_error():
    with pytest.raises(ValueError, match=r"no 'interactions\.\*' tensors.*blocks\.0\.norm1"):
        convert_official({"blocks.0.norm1.weight": torch.zeros(3)})


def test_arguments_of_the_detection_network():
    arguments = official_arguments(DET)
    assert arguments["window_size"] == [3, 0]
    assert arguments["cnn_feature_interaction"] is False  # the authors' default in detection
    assert (arguments["vit_features"], arguments["mrfp_ratio"]) == ("last", 0.5)
    ViTCoMerNet(**arguments)


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
