"""Damaged checkpoints, drawn at random: an error that changes nothing, or the report says so."""

import random
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from comer_d2.weights import WeightsError, convert_weights, load_weights
from comer_d2.weights.files import unwrap
from tests.networks import mask2former_head
from tests.weights import originals
from tests.weights.cases import CASES, make_net, make_timm, randomise

DATA = Path(__file__).parents[1] / "data"
Weights = dict[str, Tensor]
TENSORS = 10  # drawn from each checkpoint, for each kind of damage


def pretrained(name: str, layout: Callable) -> tuple[nn.Module, Weights]:
    case = CASES[name]
    source, _ = unwrap(layout(randomise(make_timm(case)).float().state_dict()), "")
    return make_net(case).float(), source


def backbone(official: bool) -> tuple[nn.Module, Weights]:
    net = make_net(CASES["mae"], num_prefix_tokens=0).float()
    weights = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    randomise(net)
    return net, convert_weights(net, weights, "official")[0] if official else weights


def mask2former() -> tuple[nn.Module, Weights]:
    numbers = load_file(DATA / "m2f_head_tiny.safetensors")
    model = nn.Module()
    model.backbone = nn.Linear(2, 2)
    model.sem_seg_head = mask2former_head()
    head = {
        name.replace("param.", "sem_seg_head."): tensor
        for name, tensor in numbers.items()
        if name.startswith("param.")
    }
    return model, head | {"backbone.stem.conv1.weight": torch.ones(4, 3, 7, 7)}


CHECKPOINTS: dict[str, Callable[[], tuple[nn.Module, Weights]]] = {
    "deit": lambda: pretrained("deit-distilled", originals.deit),
    "dinov2": lambda: pretrained("dinov2-registers", originals.dinov2),
    "dinov2 of transformers": lambda: pretrained("dinov2", originals.dinov2_transformers),
    "beit": lambda: pretrained("beit", originals.beit),
    "dinov3": lambda: pretrained("dinov3-plus", originals.dinov3),
    "dinov3 of transformers": lambda: pretrained("dinov3", originals.dinov3_transformers),
    "eva02": lambda: pretrained("eva02-base", originals.eva02),
    "perception encoder": lambda: pretrained("pe-core", originals.perception_encoder),
    "siglip2": lambda: pretrained("siglip2", originals.open_clip_trunk),
    "the authors' backbone": lambda: backbone(official=True),
    "a backbone trained here": lambda: backbone(official=False),
    "official Mask2Former": mask2former,
}

FAMILY = {"siglip2": "vit"}  # where names do not tell


def other_shape(tensor: Tensor) -> Tensor:
    """The same numbers and one more."""
    return torch.cat([tensor.flatten(), tensor.flatten()[:1]])


def one_row_less(tensor: Tensor) -> Tensor:
    return tensor[:-1] if tensor.ndim else tensor[None]


def with_nan(tensor: Tensor) -> Tensor:
    damaged = tensor.clone()
    damaged.view(-1)[-1] = torch.nan
    return damaged


def one_block_later(name: str) -> str:
    return re.sub(r"\.(\d+)\.", lambda match: f".{int(match[1]) + 1}.", name, count=1)


# A checkpoint, a name in it -> the damaged checkpoint.
MUTATIONS: dict[str, Callable[[Weights, str], Weights]] = {
    "drop": lambda w, n: {name: t for name, t in w.items() if name != n},
    "rename": lambda w, n: {name + "_" * (name == n): t for name, t in w.items()},
    "renumber": lambda w, n: {one_block_later(m) if m == n else m: t for m, t in w.items()},
    "reshape": lambda w, n: w | {n: other_shape(w[n])},
    "cut": lambda w, n: w | {n: one_row_less(w[n])},
    "int": lambda w, n: w | {n: w[n].long()},
    "half": lambda w, n: w | {n: w[n].half()},
    "complex": lambda w, n: w | {n: w[n] + 1j},
    "bool": lambda w, n: w | {n: w[n] > 0},
    "nan": lambda w, n: w | {n: with_nan(w[n].float())},
    "empty": lambda w, n: w | {n: w[n].flatten()[:0]},
    "add": lambda w, n: w | {n + ".more": w[n]},
}


def state_of(model: nn.Module) -> Weights:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: Weights, b: Weights) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_never_a_silent_difference(checkpoint):
    model, source = CHECKPOINTS[checkpoint]()
    before = state_of(model)
    family = FAMILY.get(checkpoint)
    whole = str(load_weights(model, source, label="it", family=family))
    expected = state_of(model)
    assert not same(before, expected)
    outcomes = dict.fromkeys(("error", "listed", "no difference"), 0)
    for kind, mutate in MUTATIONS.items():
        draw = random.Random(f"{checkpoint} {kind}")
        for name in draw.sample(sorted(source), min(TENSORS, len(source))):
            model.load_state_dict(before)
            try:
                damaged = mutate(source, name)
                report = str(load_weights(model, damaged, label="it", family=family))
            except WeightsError as e:
                assert same(state_of(model), before), (kind, name)
                assert len(str(e)) < 2000
                outcomes["error"] += 1
                continue
            if same(state_of(model), expected):
                outcomes["no difference"] += 1
            else:
                assert report != whole, (kind, name)
                outcomes["listed"] += 1
    assert outcomes["error"] > sum(outcomes.values()) // 2, outcomes


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_conversions_are_not_silent_either():
    """To the authors' names: what is written is what it would be, or the table says what is not."""
    model, source = CHECKPOINTS["a backbone trained here"]()
    expected, report = convert_weights(model, source, "official")
    whole = str(report)
    for kind, mutate in MUTATIONS.items():
        draw = random.Random(kind)
        for name in draw.sample(sorted(source), 5):
            try:
                result, report = convert_weights(model, mutate(source, name), "official")
            except WeightsError as e:
                assert len(str(e)) < 2000
                continue
            if result.keys() != expected.keys() or not same(result, expected):
                assert str(report) != whole, (kind, name)


@pytest.mark.parametrize("kind", ["safetensors", "torch"])
@pytest.mark.parametrize("checkpoint", ["deit", "the authors' backbone", "a backbone trained here"])
def test_cut_short(checkpoint, kind, tmp_path):
    model, source = CHECKPOINTS[checkpoint]()
    before = state_of(model)
    path = tmp_path / f"weights.{kind}"
    if kind == "torch":
        torch.save(source, path)
    else:
        path.write_bytes(save({name: tensor.contiguous() for name, tensor in source.items()}))
    content = path.read_bytes()
    draw = random.Random(checkpoint)
    for length in [*draw.sample(range(len(content)), 12), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(WeightsError, match=path.name):
            load_weights(model, path)
        assert same(state_of(model), before)
