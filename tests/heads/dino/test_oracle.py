"""Parity with MMDetection's DINO, on numbers made by running it with random weights."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_convert

from comer_d2.heads.dino import BoxMatcher, DINOCriterion, DINOHead
from comer_d2.heads.dino.head import DINOOutputs
from comer_d2.heads.dino.predictors import Prediction
from comer_d2.weights.origins.mmdetection_dino import layout
from tests.device import load_numbers
from tests.heads.dino.tiny_dino import tiny_head

DATA = Path(__file__).parents[2] / "data"
CASES = ["padded", "full"]
GRADIENT_RTOL = 1e-4  # of the tensor's absolute maximum


def own_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """MMDetection's parameters or their gradients by the names here."""
    conversion = layout(maps=3, decoder_layers=3).read(tensors)
    assert not conversion.left
    return under("head.", conversion.tensors)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def oracle() -> dict[str, Tensor]:
    return load_numbers(DATA / "mmdet_dino.safetensors")


@pytest.fixture(scope="module")
def about() -> dict:
    return json.loads((DATA / "mmdet_dino.json").read_text())


@pytest.fixture
def head(oracle: dict[str, Tensor], about: dict) -> DINOHead:
    names = ("dim", "num_levels", "encoder_layers", "decoder_layers", "num_queries")
    names += ("denoising_queries", "num_heads", "num_points", "ffn_dim")
    head = tiny_head(**{name: about[name] for name in names})
    head.load_state_dict(own_names(under("param.", oracle)), strict=True)
    return head


def features(oracle: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"res{i + 3}": oracle[f"input.{i}"].clone().requires_grad_() for i in range(3)}


def targets(oracle: dict[str, Tensor], sizes: list[tuple[int, int]]) -> list[dict[str, Tensor]]:
    found = []
    for i, (height, width) in enumerate(sizes):
        boxes = oracle[f"target.boxes.{i}"] / torch.tensor([width, height, width, height])
        found.append(
            {
                "labels": oracle[f"target.labels.{i}"],
                "boxes": box_convert(boxes, "xyxy", "cxcywh"),
            }
        )
    return found


def train(
    head: DINOHead, oracle: dict[str, Tensor], about: dict, case: str
) -> tuple[dict[str, Tensor], DINOOutputs, list[dict[str, Tensor]]]:
    """Inputs, outputs and targets of a training step with MMDetection's draws."""
    draws = [oracle[f"{case}.rand.{i}"] for i in range(4)]
    head.denoising.rand = lambda shape, device: draws.pop(0)
    sizes = about["sizes"][case.partition(".")[0]]
    inputs, wanted = features(oracle), targets(oracle, sizes)
    outputs = head.train()(inputs, about["canvas"], sizes, wanted)
    assert not draws
    return inputs, outputs, wanted


@pytest.mark.parametrize("case", CASES)
def test_encoder_and_query_selection(
    head: DINOHead, oracle: dict[str, Tensor], about: dict, case: str
) -> None:
    with torch.no_grad():
        outputs = head.eval()(features(oracle), about["canvas"], about["sizes"][case])
    padding = outputs.canvas.padding()
    assert (padding is None) == (case == "full")
    memory = outputs.memory
    if padding is not None:
        memory = memory.masked_fill(padding[..., None], 0)
    close(memory, oracle[f"{case}.memory"])
    close(outputs.proposals.boxes, oracle[f"{case}.query_boxes"])


@pytest.mark.parametrize("case", CASES)
def test_predictions_of_every_layer(
    head: DINOHead, oracle: dict[str, Tensor], about: dict, case: str
) -> None:
    with torch.no_grad():
        arguments = (features(oracle), about["canvas"], about["sizes"][case])
        layers = head.train()(*arguments).layers
        (last,) = head.eval()(*arguments).layers
    assert len(layers) == about["decoder_layers"]
    for i, layer in enumerate(layers):
        close(layer.logits, oracle[f"{case}.logits"][i])
        close(layer.boxes, oracle[f"{case}.boxes"][i])
    assert torch.equal(last.logits, layers[-1].logits)
    assert torch.equal(last.boxes, layers[-1].boxes)


@pytest.mark.parametrize("case", CASES)
def test_assignments(oracle: dict[str, Tensor], about: dict, case: str) -> None:
    wanted = targets(oracle, about["sizes"][case])
    logits, boxes = (oracle[f"{case}.{name}"] for name in ("logits", "boxes"))
    layers = [Prediction(*of_layer) for of_layer in zip(logits, boxes, strict=True)]
    for layer, matches in enumerate(BoxMatcher()(layers, wanted)):
        for i, (queries, objects) in enumerate(matches):
            expected = under(f"{case}.match.{layer}.{i}.", oracle)
            order = expected["queries"].argsort()
            assert queries.tolist() == expected["queries"][order].tolist()
            assert wanted[i]["labels"][objects].tolist() == expected["labels"][order].tolist()
    assert len(layers) == about["decoder_layers"]


@pytest.mark.parametrize("case", [*CASES, "padded.quality"])
def test_losses(head: DINOHead, oracle: dict[str, Tensor], about: dict, case: str) -> None:
    _, outputs, wanted = train(head, oracle, about, case)
    losses = DINOCriterion(matcher=BoxMatcher(), quality="quality" in case)(outputs, wanted)
    expected = {own_loss(k): v for k, v in under(f"{case}.loss.", oracle).items()}
    assert set(losses) == set(expected)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected[name], rtol=1e-4, atol=1e-5, msg=name)


def own_loss(name: str) -> str:
    layer, _, name = name.rpartition(".")
    part, _, kind = name.rpartition("loss_")
    suffix = f"_{part[:-1]}" if part else ""
    kind = {"cls": "class", "bbox": "bbox", "iou": "giou"}[kind]
    return f"loss_{kind}{suffix}" + (f"_{layer[1:]}" if layer else "")


@pytest.mark.parametrize("case", ["padded", "padded.quality"])
def test_gradients(head: DINOHead, oracle: dict[str, Tensor], about: dict, case: str) -> None:
    inputs, outputs, wanted = train(head, oracle, about, case)
    losses = DINOCriterion(matcher=BoxMatcher(), quality="quality" in case)(outputs, wanted)
    sum(losses.values()).backward()
    parameters = dict(head.named_parameters())
    expected = own_names(under(f"{case}.grad.", oracle))
    assert case != "padded" or set(expected) == set(parameters)
    for name, gradient in expected.items():
        close(parameters[name].grad, gradient, GRADIENT_RTOL * gradient.abs().max().item() + 2e-6)
    for i in range(3):
        gradient = oracle[f"{case}.grad_input.{i}"]
        close(inputs[f"res{i + 3}"].grad, gradient, GRADIENT_RTOL * gradient.abs().max().item())


def close(found: Tensor, expected: Tensor, atol: float = 2e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=atol)
