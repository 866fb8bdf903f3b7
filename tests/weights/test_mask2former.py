"""Official Mask2Former checkpoints: today's names and older ones, the head strictly.

tests/data has every name and shape of the official R50 model with 150 classes (keys_m2f.txt), and
the weights of an official head of a few channels with what it computes (m2f_head_tiny).
"""

import pickle
import re
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from comer_d2.heads.mask2former import Mask2FormerHead
from comer_d2.heads.mask_decoder import MaskedTransformerDecoder
from comer_d2.heads.pixel_decoder import MSDeformAttnPixelDecoder
from comer_d2.weights import WeightsError, convert_weights, load_weights, read_weights
from comer_d2.weights.origins.mask2former import HEAD
from tests.networks import mask2former_head

DATA = Path(__file__).parents[1] / "data"
BACKBONES = {
    "none": {},
    "R50": {
        "backbone.stem.conv1.weight": torch.ones(4, 3, 7, 7),
        "backbone.res2.0.conv1.norm.running_var": torch.ones(4),
    },
    "Swin": {"backbone.layers.0.blocks.0.attn.relative_position_bias_table": torch.ones(9, 2)},
}


class Mask2Former(nn.Module):
    """A model's names: a backbone that the official one has not, and the head."""

    def __init__(self, head: Mask2FormerHead, num_classes: int) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 2)
        self.sem_seg_head = head
        self.criterion = nn.Module()
        self.criterion.register_buffer("empty_weight", torch.ones(num_classes + 1))


@pytest.fixture
def model():
    return Mask2Former(mask2former_head(), 5).eval()


@pytest.fixture
def numbers():
    return load_file(DATA / "m2f_head_tiny.safetensors")


@pytest.fixture
def official(numbers):
    """A whole checkpoint on R50, by the official names."""
    head = {
        name.replace("param.", HEAD): tensor
        for name, tensor in numbers.items()
        if name.startswith("param.")
    }
    empty_weight = torch.tensor([1.0] * 5 + [0.1])
    return BACKBONES["R50"] | head | {"criterion.empty_weight": empty_weight}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_every_official_name_and_shape():
    """At the official sizes: 292 tensors of the head, just those of the head here."""
    lines = [line.split("\t") for line in (DATA / "keys_m2f.txt").read_text().splitlines()]
    given = {
        name: torch.zeros(()).expand([int(n) for n in re.findall(r"\d+", shape)])
        for name, shape in lines
    }
    assert len(given) == 293
    with torch.device("meta"):
        own = Mask2Former(
            Mask2FormerHead(
                MSDeformAttnPixelDecoder(in_channels=[256, 512, 1024, 2048]),
                MaskedTransformerDecoder(num_classes=150),
            ),
            150,
        )
    converted, report = convert_weights(own, given)
    assert {n: t.shape for n, t in converted.items()} == {
        n: t.shape for n, t in own.state_dict().items() if not n.startswith("backbone.")
    }
    assert report.source_elements == sum(t.numel() for t in given.values())


def test_the_converted_head_computes_what_the_official_one_does(numbers, official, model):
    load_weights(model, official)
    with torch.no_grad():
        outputs = model.sem_seg_head({f"res{i}": numbers[f"input.p{i}"] for i in range(2, 6)})
    for name in ("pred_logits", "pred_masks"):
        torch.testing.assert_close(outputs[name], numbers[f"output.{name}"], atol=1e-5, rtol=1e-5)


def test_older_names(official, model):
    """`static_query`, and the pixel decoder's parts right under the head."""
    old = {
        name.replace("predictor.query_feat.", "predictor.static_query.").replace(
            "sem_seg_head.pixel_decoder.", HEAD
        ): tensor
        for name, tensor in official.items()
    }
    assert old.keys() != official.keys()
    assert same(convert_weights(model, old)[0], convert_weights(model, official)[0])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_backbone_is_listed_and_not_used(official, model, backbone):
    given = BACKBONES[backbone] | {n: t for n, t in official.items() if "backbone" not in n}
    given |= {"pixel_mean": torch.ones(3, 1, 1)}
    report = load_weights(model, given)
    assert report.source_elements == sum(t.numel() for t in given.values())
    unused = {entry.source: entry.note for entry in report.of("not used")}
    assert unused.pop("pixel_mean") == "the config has the normalisation of images"
    assert unused == dict.fromkeys(
        BACKBONES[backbone], "of another backbone: only the head is loaded"
    )
    assert set(report.fresh) == {"backbone.weight", "backbone.bias"}


def test_head_without_criterion(official, model):
    load_weights(model, {n: t for n, t in official.items() if n.startswith(HEAD)})


def test_another_head_is_none(model):
    with pytest.raises(WeightsError, match="nothing that is known here"):
        load_weights(model, {HEAD + "predictor.transformer.decoder.layers.0.norm1.bias": VECTOR})


VECTOR = torch.zeros(32)


ENCODER = "pixel_decoder.transformer.encoder.layers.1.self_attn"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("predictor.query_embed.weight", None, "predictor.query_embed.weight: missing"),
        ("pixel_decoder.layer_1.norm.bias", None, "pixel_decoder.layer_1.norm.bias: missing"),
        ("pixel_decoder.adapter_1.weight", None, "pixel_decoder.adapter_1.weight: missing"),
        (f"{ENCODER}.attention_weights.bias", None, "attention_weights.bias' is missing"),
        ("predictor.class_embed.bias", torch.zeros(7), "of shape (7,), in the model (6,)"),
        ("predictor.mask_embed.layers.1.weight", torch.zeros(32, 31), "of shape (32, 31), in the"),
        ("predictor.decoder_norm.bias", torch.full((32,), torch.inf), "has NaN or infinite"),
        ("predictor.static_query.weight", torch.zeros(8, 32), "two tensors stand for"),
        ("predictor.reid_embed.weight", torch.zeros(1), "fit: sem_seg_head.predictor.reid_embed"),
        ("head.weight", torch.zeros(1), "fit: sem_seg_head.head.weight"),
    ],
)
def test_a_damaged_checkpoint_is_an_error(official, model, name, value, message):
    official[HEAD + name] = value
    if value is None:
        del official[HEAD + name]
    with pytest.raises(WeightsError, match=re.escape(message)):
        load_weights(model, official)


def test_criterion_of_another_number_of_classes_is_an_error(official, model):
    official["criterion.empty_weight"] = torch.ones(9)
    with pytest.raises(
        WeightsError, match=r"criterion.empty_weight: of shape \(9,\), in the model \(6,\)"
    ):
        load_weights(model, official)


def write_pickle(path, content, protocol):
    with path.open("wb") as f:
        pickle.dump(content, f, protocol=protocol)


@pytest.mark.parametrize("protocol", [2, 4])
def test_from_the_file_that_the_project_publishes(official, tmp_path, protocol):
    """A pickle of arrays, which is not executed."""
    path = tmp_path / "model_final.pkl"
    arrays = OrderedDict((name, tensor.numpy()) for name, tensor in official.items())
    content = {"model": arrays, "__author__": "third_party", "iteration": np.int64(368750)}
    write_pickle(path, content, protocol)
    weights, rest = read_weights(path)
    assert same(weights, official)
    assert rest["__author__"] == "third_party"


class Harmful:
    def __reduce__(self):
        return (print, ("executed",))


@pytest.mark.parametrize("value", [Harmful(), torch.device, Path], ids=["print", "torch", "Path"])
def test_a_pickle_of_anything_else_is_refused(tmp_path, value, capsys):
    path = tmp_path / "model_final.pkl"
    write_pickle(path, {"model": {"a": np.zeros(3)}, "other": value}, 2)
    with pytest.raises(WeightsError, match=r"wants the type \S+, and making it could execute"):
        read_weights(path)
    assert "executed" not in capsys.readouterr().out


@pytest.mark.parametrize("keep", [0, 1, 20, 0.5, -1])
def test_a_pickle_cut_short_is_an_error(tmp_path, keep):
    path = tmp_path / "model_final.pkl"
    write_pickle(path, {"model": {"a": np.arange(300.0)}}, 2)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep) if keep == 0.5 else keep])
    with pytest.raises(WeightsError, match=r"model_final\.pkl'"):
        read_weights(path)
