"""Parity with the official Mask2Former, on numbers made by running it with random weights."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from comer_d2.heads.criterion import SetCriterion
from comer_d2.heads.hungarian import Matches
from comer_d2.heads.mask2former import Mask2FormerHead
from comer_d2.heads.mask_decoder import MaskedTransformerDecoder, attention_mask
from comer_d2.heads.matcher import HungarianMatcher
from comer_d2.heads.pixel_decoder import MSDeformAttnPixelDecoder
from comer_d2.layers.positions import sine_position_encoding
from comer_d2.weights.origins.mask2former import HEAD, PIXEL_DECODER, layout
from tests.device import load_numbers

KEYS = Path(__file__).parents[1] / "data" / "keys_m2f.txt"
RENAMED = {"p2": "res2", "p3": "res3", "p4": "res4", "p5": "res5"}
ATOL = 2e-5  # of logits up to 33: sums are in another order, by the number of threads
GRADIENT_RTOL = 1e-4  # of the tensor's absolute maximum


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def named_here(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """A head's tensors by the names here."""
    read = layout(PIXEL_DECODER).read({HEAD + name: value for name, value in official.items()})
    assert not read.left
    return {name.removeprefix(HEAD): value for name, value in read.tensors.items()}


def official_part(name: str, own: dict[str, Tensor]) -> tuple[set[str], Tensor]:
    """The official project's tensor out of those of the head here, and the names of these."""
    stem, _, kind = name.rpartition(".in_proj_")
    if stem:
        names = [f"{stem}.{part}_proj.{kind}" for part in "qkv"]
        return set(names), torch.cat([own[n] for n in names])
    for layer, part in (("sampling_offsets", slice(0, 2)), ("attention_weights", slice(2, 3))):
        if f".{layer}." in name:
            name = name.replace(layer, "sampling")
            return {name}, own[name].unflatten(0, (3, -1))[part].flatten(0, 1)
    return {name}, own[name]


def read_head(path: Path) -> tuple[dict[str, Tensor], Mask2FormerHead, dict[str, Tensor]]:
    """The file's tensors, the head with its parameters, and its inputs."""
    tensors = load_numbers(path)
    config = json.loads(path.with_suffix(".json").read_text())["config"]
    names = [RENAMED[name] for name in config["names"]]
    pixel_decoder = MSDeformAttnPixelDecoder(
        in_features=names,
        in_channels=config["in_channels"],
        transformer_in_features=[RENAMED[name] for name in config["transformer_in_features"]],
        conv_dim=config["conv_dim"],
        mask_dim=config["mask_dim"],
        num_heads=config["nheads"],
        num_layers=config["enc_layers"],
        ffn_dim=config["enc_ffn"],
    )
    predictor = MaskedTransformerDecoder(
        in_channels=config["conv_dim"],
        num_classes=config["num_classes"],
        hidden_dim=config["hidden_dim"],
        mask_dim=config["mask_dim"],
        num_queries=config["num_queries"],
        num_heads=config["nheads"],
        num_layers=config["dec_layers"],
        ffn_dim=config["dec_ffn"],
        enforce_input_project=config["enforce_input_project"],
        pre_norm=config["pre_norm"],
    )
    head = Mask2FormerHead(pixel_decoder, predictor)
    head.load_state_dict(named_here(under("param.", tensors)), strict=True)
    inputs = {RENAMED[k]: v.requires_grad_() for k, v in under("input.", tensors).items()}
    return tensors, head.train(), inputs  # only in training are there auxiliary outputs


@pytest.mark.golden("m2f_head_*.safetensors")
def test_head(golden_path: Path) -> None:
    tensors, head, inputs = read_head(golden_path)
    encoded: list[Tensor] = []
    for layer in head.pixel_decoder.transformer.encoder.layers:
        layer.register_forward_hook(lambda module, args, output: encoded.append(output))
    mask_features, maps = head.pixel_decoder(inputs)
    for number, output in enumerate(encoded):
        close(output, tensors[f"inter.encoder_layer.{number}"])
    for number, output in enumerate(maps):
        close(output, tensors[f"inter.multi_scale.{number}"])
    close(mask_features, tensors["output.mask_features"])

    outputs = head(inputs)
    close(outputs["pred_logits"], tensors["output.pred_logits"])
    close(outputs["pred_masks"], tensors["output.pred_masks"])
    for number, output in enumerate(outputs["aux_outputs"]):
        close(output["pred_logits"], tensors[f"output.aux.{number}.pred_logits"])
        close(output["pred_masks"], tensors[f"output.aux.{number}.pred_masks"])


@pytest.mark.golden("m2f_head_*.safetensors")
def test_positions_and_attention_masks(golden_path: Path) -> None:
    tensors, head, inputs = read_head(golden_path)
    for expected in under("inter.pos.", tensors).values():
        channels, *size = expected.shape[1:]
        found = sine_position_encoding(*size, channels, expected.device)
        close(found, expected[0].flatten(1).T)
    outputs = head(inputs)
    predictions = [*outputs["aux_outputs"], outputs]
    _, maps = head.pixel_decoder(inputs)
    for number, expected in sorted(under("inter.attn_mask.", tensors).items()):
        # The official masks are repeated for every head, 1 where a query may not look, and not yet
        # opened for queries that may look nowhere.
        size = maps[int(number) % len(maps)].shape[-2:]
        allowed = attention_mask(predictions[int(number)]["pred_masks"], size)
        expected = expected.unflatten(0, (len(allowed), -1)) == 0
        expected |= ~expected.any(dim=-1, keepdim=True)
        assert (allowed == expected).all()


@pytest.mark.golden("m2f_head_*.safetensors")
def test_gradients(golden_path: Path) -> None:
    tensors, head, inputs = read_head(golden_path)
    outputs = head(inputs)
    predictions = [outputs, *outputs["aux_outputs"]]
    loss = sum(
        p[name].square().mean() for p in predictions for name in ("pred_logits", "pred_masks")
    )
    torch.testing.assert_close(loss, tensors["grad.loss"].squeeze(), rtol=1e-5, atol=1e-5)
    loss.backward()
    parameters = {name: p.grad for name, p in head.named_parameters()}
    count = len(parameters)
    used = set()
    for name, expected in under("grad.param.", tensors).items():
        names, found = official_part(name, parameters)
        used |= names
        # 2e-6: biases in front of a norm have no gradient but noise.
        close(found, expected, GRADIENT_RTOL * expected.abs().max().item() + 2e-6)
    for name, expected in under("grad.input.", tensors).items():
        close(inputs[RENAMED[name]].grad, expected, GRADIENT_RTOL * expected.abs().max().item())
    assert len(used) == count


class Draws(list[Tensor]):
    """Random numbers to be used in order, instead of new ones."""

    def __call__(self, shape: tuple[int, ...], *, device: torch.device) -> Tensor:
        draw = self.pop(0)
        assert tuple(draw.shape) == tuple(shape)
        return draw


def read_criterion(
    path: Path,
) -> tuple[dict, dict[str, Tensor], SetCriterion, dict, list[dict]]:
    """With the official run's random numbers: those of an image's predictions are drawn together here."""
    tensors = load_numbers(path)
    about = json.loads(path.with_suffix(".json").read_text())
    weights = about["weights"]
    drawn = [tensors[name] for name in sorted(tensors) if name.startswith("rand.")]
    num_images = len(about["target_counts"])
    step = num_images + 2  # of a prediction: its images' for the matching, two for the losses
    draws = Draws(torch.cat(drawn[i::step]) for i in range(num_images))
    matcher = HungarianMatcher(
        cost_class=weights["loss_ce"],
        cost_mask=weights["loss_mask"],
        cost_dice=weights["loss_dice"],
        num_points=about["num_points"],
        rand=draws,
    )
    criterion = SetCriterion(
        num_classes=about["num_classes"],
        matcher=matcher,
        class_weight=weights["loss_ce"],
        mask_weight=weights["loss_mask"],
        dice_weight=weights["loss_dice"],
        no_object_weight=about["eos_coef"],
        num_points=about["num_points"],
        oversample_ratio=about["oversample_ratio"],
        importance_sample_ratio=about["importance_sample_ratio"],
        rand=Draws(d for i, d in enumerate(drawn) if i % step >= num_images),
    )

    def prediction(name: str) -> dict[str, Tensor]:
        found = under(f"input.{name}.", tensors)
        return {key: value.requires_grad_() for key, value in found.items()}

    outputs = prediction("final")
    outputs["aux_outputs"] = [prediction(f"aux.{i}") for i in range(about["aux_layers"])]
    targets = [
        {"labels": tensors[f"target.{i}.labels"], "masks": tensors[f"target.{i}.masks"].bool()}
        for i in range(num_images)
    ]
    return about, tensors, criterion, outputs, targets


@pytest.mark.golden("m2f_criterion*.safetensors")
def test_losses_and_gradients(golden_path: Path) -> None:
    about, tensors, criterion, outputs, targets = read_criterion(golden_path)
    losses = criterion(outputs, targets)
    assert not criterion.rand and not criterion.matcher.rand  # every number was used
    weights = about["weight_dict"]
    assert set(losses) == set(weights)
    for name, loss in losses.items():
        torch.testing.assert_close(loss, weights[name] * tensors[f"loss.{name}"].squeeze())
    total = sum(losses.values())
    torch.testing.assert_close(total, tensors["loss.total_weighted"].squeeze())
    total.backward()
    for name, prediction in [
        ("final", outputs),
        *((f"aux.{i}", aux) for i, aux in enumerate(outputs["aux_outputs"])),
    ]:
        for key in ("pred_logits", "pred_masks"):
            expected = tensors[f"grad.{name}.{key}"]
            close(prediction[key].grad, expected, GRADIENT_RTOL * expected.abs().max().item())


@pytest.mark.golden("m2f_criterion*.safetensors")
def test_costs_and_matches(golden_path: Path) -> None:
    about, tensors, criterion, outputs, targets = read_criterion(golden_path)
    costs: list[Sequence[Tensor]] = []
    assign = criterion.matcher.assign

    def listening(found: Sequence[Sequence[Tensor]], *others: Any) -> Iterator[Matches]:
        costs.extend(found)
        return assign(found, *others)

    criterion.matcher.assign = listening
    names = ["final", *(f"aux.{i}" for i in range(about["aux_layers"]))]
    matches = list(criterion.matcher([outputs, *outputs["aux_outputs"]], targets))
    for i, name in enumerate(names):
        for number, (queries, objects) in enumerate(matches[i]):
            close(costs[number][i], tensors[f"matcher.{name}.{number}.cost"])
            assert queries.tolist() == tensors[f"matcher.{name}.{number}.src_idx"].tolist()
            assert objects.tolist() == tensors[f"matcher.{name}.{number}.tgt_idx"].tolist()


def test_keys_of_the_official_checkpoint() -> None:
    official = {name: torch.zeros(()).expand(shape) for name, shape in _read_keys()}
    assert len(official) == 293
    with torch.device("meta"):
        head = Mask2FormerHead(
            MSDeformAttnPixelDecoder(in_channels=[256, 512, 1024, 2048]),
            MaskedTransformerDecoder(num_classes=150),
        )
        criterion = SetCriterion(num_classes=150, matcher=HungarianMatcher())
    found = {f"sem_seg_head.{k}": v.shape for k, v in head.state_dict().items()}
    found |= {f"criterion.{k}": v.shape for k, v in criterion.state_dict().items()}
    read = layout(PIXEL_DECODER).read(official)
    assert not read.left and found == {k: v.shape for k, v in read.tensors.items()}
    sizes = [sum(p.numel() for p in m.parameters()) for m in (head.pixel_decoder, head.predictor)]
    assert [round(size / 1e6, 2) for size in sizes] == [6.04, 14.50]


def _read_keys() -> Iterator[tuple[str, tuple[int, ...]]]:
    for line in KEYS.read_text().splitlines():
        name, shape = line.split("\t")
        yield name, tuple(int(n) for n in shape.strip("(),").split(",") if n.strip())


def close(found: Tensor, expected: Tensor, atol: float = ATOL) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=atol)
