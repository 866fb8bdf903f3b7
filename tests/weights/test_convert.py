"""Conversions: what would be loaded, as a state dict, proved whole by a model without memory."""

from pathlib import Path

import numpy
import pytest
import torch

from comer_d2.weights import WeightsError, convert_weights, load_weights
from comer_d2.weights.files import unwrap
from tests.weights import originals
from tests.weights.cases import CASES, UNI_PERCEIVER, UniPerceiver, make_net, make_timm, randomise

LAYOUTS = [
    pytest.param(case, layout, id=f"{name}-{layout.__name__}")
    for name, case in CASES.items()
    for layout in (case.layouts or (originals.as_it_is,))
]


def on_meta(case):
    net = make_net(case)
    return net.to("meta")


@pytest.mark.parametrize(("case", "layout"), LAYOUTS)
def test_a_pretrained_vit(case, layout):
    """What is written is by the model's names, and loads like the file itself."""
    source, _ = unwrap(layout(randomise(make_timm(case)).state_dict()), "")
    converted, report = convert_weights(on_meta(case), source, family=case.family)
    assert report.source_elements == sum(t.numel() for t in source.values())
    assert all(name.startswith("vit.") for name in converted)
    direct, indirect = make_net(case), make_net(case)
    load_weights(direct, source, family=case.family)
    reloaded = load_weights(indirect, converted)
    assert not reloaded.of("not used")
    for name, tensor in direct.vit.state_dict().items():
        assert torch.equal(indirect.vit.state_dict()[name], tensor), name


@pytest.mark.parametrize("layout", UNI_PERCEIVER)
def test_uni_perceiver(layout):
    oracle = randomise(UniPerceiver(layout is originals.uni_perceiver_post_norm).double())
    source, _ = unwrap(layout(oracle.original()), "")
    case = UNI_PERCEIVER[layout]
    converted, _ = convert_weights(on_meta(case), source)
    direct, indirect = make_net(case), make_net(case)
    load_weights(direct, source)
    load_weights(indirect, converted)
    for name, tensor in direct.vit.state_dict().items():
        assert torch.equal(indirect.vit.state_dict()[name], tensor), name


def test_augreg_from_jax(tmp_path: Path):
    """timm's own reader of these files is the oracle."""
    case = CASES["augreg-224"]
    origin, arrays = randomise(make_timm(case)), {}
    dim, heads = origin.embed_dim, origin.blocks[0].attn.num_heads
    state = {name: tensor.float().numpy() for name, tensor in origin.state_dict().items()}
    arrays["embedding/kernel"] = state["patch_embed.proj.weight"].transpose(2, 3, 1, 0)
    arrays["embedding/bias"] = state["patch_embed.proj.bias"]
    arrays["cls"] = state["cls_token"]
    arrays["Transformer/posembed_input/pos_embedding"] = state["pos_embed"]
    for i in range(len(origin.blocks)):
        there, here = f"Transformer/encoderblock_{i}", f"blocks.{i}"
        attention = f"{there}/MultiHeadDotProductAttention_1"
        for j, norm in ((0, "norm1"), (2, "norm2")):
            arrays[f"{there}/LayerNorm_{j}/scale"] = state[f"{here}.{norm}.weight"]
            arrays[f"{there}/LayerNorm_{j}/bias"] = state[f"{here}.{norm}.bias"]
        for j, part in enumerate(("query", "key", "value")):
            rows = slice(j * dim, (j + 1) * dim)
            kernel = state[f"{here}.attn.qkv.weight"][rows].T.reshape(dim, heads, -1)
            arrays[f"{attention}/{part}/kernel"] = kernel
            arrays[f"{attention}/{part}/bias"] = state[f"{here}.attn.qkv.bias"][rows].reshape(
                heads, -1
            )
        arrays[f"{attention}/out/kernel"] = state[f"{here}.attn.proj.weight"].T.reshape(
            heads, -1, dim
        )
        arrays[f"{attention}/out/bias"] = state[f"{here}.attn.proj.bias"]
        for j in (0, 1):
            arrays[f"{there}/MlpBlock_3/Dense_{j}/kernel"] = state[f"{here}.mlp.fc{j + 1}.weight"].T
            arrays[f"{there}/MlpBlock_3/Dense_{j}/bias"] = state[f"{here}.mlp.fc{j + 1}.bias"]
    arrays["Transformer/encoder_norm/scale"] = state["norm.weight"]
    arrays["Transformer/encoder_norm/bias"] = state["norm.bias"]
    arrays["head/kernel"], arrays["head/bias"] = state["head.weight"].T, state["head.bias"]
    numpy.savez(tmp_path / "augreg.npz", **arrays)
    oracle = make_timm(case)
    oracle.load_pretrained(str(tmp_path / "augreg.npz"))
    assert torch.equal(oracle.blocks[1].attn.proj.weight, origin.blocks[1].attn.proj.weight.float())

    direct, other = make_net(case), make_net(case)
    report = load_weights(direct, tmp_path / "augreg.npz")
    load_weights(other, oracle.float().state_dict())
    for name, tensor in other.vit.state_dict().items():
        assert torch.equal(direct.vit.state_dict()[name], tensor), name
    assert report.source_elements == sum(array.size for array in arrays.values())


@pytest.mark.parametrize(
    ("changes", "arguments", "message"),
    [
        ({}, dict(to="timm"), "to must be one of here, official, got 'timm'"),
        ({}, dict(family="clip"), "nothing that is known here as 'clip'|CLIP"),
        ({}, dict(family="dino"), r"family must be one of \['augreg'"),
        ({}, dict(to="official"), "is a pretrained ViT .*Train from it first"),
        ({"blocks.1.mlp.fc2.bias": None}, {}, "not in the pretraining"),
        ({"extra": torch.zeros(1)}, {}, "not fit: extra "),
    ],
)
def test_errors(changes, arguments, message):
    case = CASES["mae"]
    source = {**randomise(make_timm(case)).state_dict(), **changes}
    source = {name: tensor for name, tensor in source.items() if tensor is not None}
    with pytest.raises(WeightsError, match=message):
        convert_weights(on_meta(case), source, **arguments)


def test_what_is_left_out_is_listed():
    case = CASES["mae"]
    source = randomise(make_timm(case)).state_dict() | {"extra": torch.zeros(3)}
    converted, report = convert_weights(on_meta(case), source, allow=["extra"])
    assert {"extra": 3}.items() <= {e.source: e.elements for e in report.of("not used")}.items()
    assert "vit.extra" not in converted
