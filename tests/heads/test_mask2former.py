"""Mask2Former's head and losses where they are fragile: sizes, types, and what data may hold."""

import logging
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from comer_d2.heads import hungarian as hungarian_module
from comer_d2.heads.criterion import SetCriterion
from comer_d2.heads.mask2former import Mask2FormerHead
from comer_d2.heads.mask_decoder import (
    CrossAttentionLayer,
    FFNLayer,
    MaskedTransformerDecoder,
    SelfAttentionLayer,
    attention_mask,
)
from comer_d2.heads.matcher import HungarianMatcher
from comer_d2.heads.pixel_decoder import MSDeformAttnPixelDecoder
from comer_d2.heads.points import MASKS_AT_A_TIME, sample_masks, sample_points
from comer_d2.layers.attention import MultiheadAttention
from comer_d2.layers.deform_attn import MSDeformAttn
from tests.device import autocast
from tests.remote import RemoteDevice, remote

NUM_CLASSES, NUM_QUERIES = 4, 6
FEATURES = ("res2", "res3", "res4", "res5")


def tiny_head(encoded: int = 3, **predictor: Any) -> Mask2FormerHead:
    pixel_decoder = MSDeformAttnPixelDecoder(
        in_features=FEATURES,
        in_channels=[8, 12, 16, 20],
        transformer_in_features=FEATURES[4 - encoded :],
        conv_dim=32,
        mask_dim=16,
        num_heads=4,
        num_layers=1,
        ffn_dim=32,
        norm_groups=8,
    )
    settings = {
        "in_channels": 32,
        "num_classes": NUM_CLASSES,
        "hidden_dim": 32,
        "mask_dim": 16,
        "num_queries": NUM_QUERIES,
        "num_heads": 4,
        "num_layers": 3,
        "ffn_dim": 32,
    }
    return Mask2FormerHead(pixel_decoder, MaskedTransformerDecoder(**{**settings, **predictor}))


def features(height: int = 64, width: int = 96, batch: int = 2) -> dict[str, Tensor]:
    return {
        name: torch.randn(batch, channels, height // stride, width // stride)
        for name, channels, stride in zip(FEATURES, [8, 12, 16, 20], [4, 8, 16, 32], strict=True)
    }


def criterion() -> SetCriterion:
    return SetCriterion(
        num_classes=NUM_CLASSES,
        matcher=HungarianMatcher(num_points=64),
        num_points=64,
    )


def target(count: int, height: int = 64, width: int = 96) -> dict[str, Any]:
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for i in range(count):
        masks[i, 2 * i : 2 * i + 20, 3 * i : 3 * i + 30] = True
    return {"labels": torch.arange(count) % NUM_CLASSES, "masks": masks}


@pytest.mark.parametrize("encoded", [1, 2, 3, 4])
@pytest.mark.parametrize("size", [(64, 96), (96, 32), (32, 32)])
def test_any_number_of_encoder_levels_and_any_shape(encoded: int, size: tuple[int, int]) -> None:
    head = tiny_head(encoded, num_levels=min(encoded, 3))
    outputs = head(features(*size))
    predictions = [outputs, *outputs["aux_outputs"]]
    assert len(predictions) == 4
    for prediction in predictions:
        assert prediction["pred_logits"].shape == (2, NUM_QUERIES, NUM_CLASSES + 1)
        assert prediction["pred_masks"].shape == (2, NUM_QUERIES, size[0] // 4, size[1] // 4)


@pytest.mark.parametrize("counts", [(2, 3), (0, 3), (0, 0)])
def test_every_parameter_learns(counts: tuple[int, int]) -> None:
    head = tiny_head()
    losses = criterion()(head(features()), [target(count) for count in counts])
    assert len(losses) == 3 * 4
    sum(losses.values()).backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    if counts == (0, 0):
        assert losses["loss_mask"] == losses["loss_dice"] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    head, inputs = tiny_head(), features()
    with torch.no_grad():
        expected = head(inputs)["aux_outputs"][0]  # before the threshold of an attention mask
        head.to(dtype)
        output = head({name: value.to(dtype) for name, value in inputs.items()})
    found = output["aux_outputs"][0]
    for name in ("pred_logits", "pred_masks"):
        assert output[name].dtype == dtype and torch.isfinite(output[name]).all()
        scale = expected[name].abs().max()
        assert (found[name].float() - expected[name]).abs().max() < 0.05 * scale


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    head, inputs = tiny_head(), features()
    types: dict[str, torch.dtype] = {}
    for name, module in head.named_modules():
        if isinstance(module, (nn.Linear, nn.Conv2d, MSDeformAttn, MultiheadAttention)):
            module.register_forward_hook(
                lambda module, args, output, name=name: types.update({name: output.dtype})
            )
    with torch.no_grad():
        expected = head(inputs)
        with autocast(dtype):
            found = head(inputs)
    # Nothing is forced to float32 as a whole: every product of matrices is in half precision. (Of
    # a ConvNorm the norm comes last; two linear layers are computed as one, and never called.)
    others = {name for name, found_type in types.items() if found_type != dtype}
    assert all("adapter_" in name or "layer_" in name for name in others), others
    assert len(types) > 30
    assert found["pred_masks"].dtype == dtype
    # The attention mask is a threshold: compared is the prediction before any attention.
    first, other = expected["aux_outputs"][0], found["aux_outputs"][0]
    for name in ("pred_logits", "pred_masks"):
        scale = first[name].abs().max()
        assert (other[name].float() - first[name]).abs().max() < 0.05 * scale
    with autocast(dtype):
        losses = criterion()(head(inputs), [target(2), target(1)])
    assert all(loss.dtype == torch.float32 and torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()


def test_a_query_that_may_look_nowhere_looks_everywhere() -> None:
    masks = torch.full((1, 3, 8, 8), -5.0)
    masks[0, 1, :4] = 5.0
    allowed = attention_mask(masks, (4, 4))
    assert allowed.shape == (1, 1, 3, 16)  # one for all heads
    assert allowed[0, 0].sum(-1).tolist() == [16, 8, 16]


def test_in_evaluation_there_is_the_last_prediction_alone() -> None:
    torch.manual_seed(0)
    head, inputs = tiny_head(), features()
    with torch.no_grad():
        expected = head(inputs)
        found = head.eval()(inputs)
    assert found.pop("aux_outputs") == []
    assert len(expected.pop("aux_outputs")) == 3
    assert all((found[name] == value).all() for name, value in expected.items())


def predictions(**change: Tensor) -> dict[str, Any]:
    found = {
        "pred_logits": torch.randn(2, NUM_QUERIES, NUM_CLASSES + 1),
        "pred_masks": torch.randn(2, NUM_QUERIES, 16, 24),
        "aux_outputs": [],
    }
    return {**found, **change}


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What the matcher says, also where an earlier test has set up the project's logging."""
    hungarian_module.logger.addHandler(caplog.handler)
    hungarian_module.logger.setLevel(logging.WARNING)
    yield caplog
    hungarian_module.logger.removeHandler(caplog.handler)


def test_more_objects_than_queries(heard: pytest.LogCaptureFixture) -> None:
    match = HungarianMatcher(num_points=64)
    for _ in range(3):
        (matches,) = match([predictions()], [{**target(9), "name": "crowd.jpg"}, target(2)])
    assert [len(queries) for queries, _ in matches] == [NUM_QUERIES, 2]
    assert len(set(matches[0][1].tolist())) == NUM_QUERIES
    (message,) = {record.getMessage() for record in heard.records}
    assert len(heard.records) <= 2  # said once, and heard at most twice
    assert "crowd.jpg has 9 objects, more than the 6 queries" in message
    losses = criterion()(predictions(), [target(9), target(2)])
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_names_the_image(value: float, heard: pytest.LogCaptureFixture) -> None:
    outputs = predictions()
    outputs["pred_masks"][1, 2] = value
    outputs["pred_logits"][1, 0] = value
    (matches,) = HungarianMatcher(num_points=64)(
        [outputs], [target(2), {**target(3), "name": "bad.jpg"}]
    )
    assert [len(queries) for queries, _ in matches] == [2, 3]
    assert any(
        record.getMessage().startswith("bad.jpg: NaN or infinite") for record in heard.records
    )


def test_the_best_query_is_matched() -> None:
    wanted = target(2)
    small = wanted["masks"][:, ::4, ::4].float() * 20 - 10
    masks = torch.full((1, NUM_QUERIES, 16, 24), -10.0)
    masks[0, 4], masks[0, 1] = small[0], small[1]
    logits = torch.zeros(1, NUM_QUERIES, NUM_CLASSES + 1)
    (((queries, objects),),) = HungarianMatcher(num_points=256)(
        [{"pred_logits": logits, "pred_masks": masks}], [wanted]
    )
    assert dict(zip(queries.tolist(), objects.tolist(), strict=True)) == {1: 1, 4: 0}


def test_masks_are_sampled_a_few_at_a_time() -> None:
    masks = torch.rand(2 * MASKS_AT_A_TIME + 3, 9, 14) > 0.5
    points = torch.rand(len(masks), 50, 2) * 1.2 - 0.1
    expected = sample_points(masks[:, None], points)[:, 0]
    assert (sample_masks(masks, points) == expected).all()
    chosen = torch.randperm(len(masks))[: MASKS_AT_A_TIME + 1]
    assert (sample_masks(masks, points[chosen], chosen) == expected[chosen]).all()
    shared = sample_points(masks[:, None], points[:1].expand(len(masks), -1, -1))[:, 0]
    assert (sample_masks(masks, points[:1]) == shared).all()
    assert sample_masks(masks[:0], points[:1]).shape == (0, 50)


def test_padding_changes_no_loss_at_the_same_places() -> None:
    """Predictions and masks padded with zeros to twice the size, points at the same pixels."""
    outputs = {
        "pred_logits": torch.randn(2, NUM_QUERIES, NUM_CLASSES + 1),
        "pred_masks": torch.randn(2, NUM_QUERIES, 16, 24),
    }
    targets = [target(2), target(3)]

    def losses(scale: int) -> dict[str, Tensor]:
        generator = torch.Generator(torch.get_default_device()).manual_seed(0)

        def rand(shape: tuple[int, ...], *, device: torch.device) -> Tensor:
            return torch.rand(shape, generator=generator, device=device) / scale

        def padded(x: Tensor) -> Tensor:
            height, width = x.shape[-2:]
            return F.pad(x, (0, (scale - 1) * width, 0, (scale - 1) * height))

        compared = SetCriterion(
            num_classes=NUM_CLASSES,
            matcher=HungarianMatcher(num_points=64, rand=rand),
            num_points=64,
            rand=rand,
        )
        prediction = {**outputs, "pred_masks": padded(outputs["pred_masks"]), "aux_outputs": []}
        return compared(prediction, [{**t, "masks": padded(t["masks"])} for t in targets])

    expected, found = losses(1), losses(2)
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, msg=name)


@pytest.mark.parametrize("pre_norm", [False, True])
def test_decoder_layers_equal_torchs(pre_norm: bool) -> None:
    """Norms behind the sums, or in front: without positions, torch's own transformer decoder layer."""
    expected = nn.TransformerDecoderLayer(
        16, 4, 32, dropout=0.0, batch_first=True, norm_first=pre_norm
    ).double()
    for parameter in expected.parameters():
        nn.init.normal_(parameter, std=0.3)
    layers = (
        SelfAttentionLayer(16, 4, pre_norm),
        CrossAttentionLayer(16, 4, pre_norm),
        FFNLayer(16, 32, pre_norm),
    )
    self_attention, cross_attention, ffn = (layer.double() for layer in layers)
    for own, given in (
        (self_attention.self_attn, expected.self_attn),
        (cross_attention.multihead_attn, expected.multihead_attn),
    ):
        parts = zip(given.in_proj_weight.chunk(3), given.in_proj_bias.chunk(3), strict=True)
        for proj, (weight, bias) in zip((own.q_proj, own.k_proj, own.v_proj), parts, strict=True):
            proj.load_state_dict({"weight": weight, "bias": bias})
        own.out_proj.load_state_dict(given.out_proj.state_dict())
    for layer, norm in zip(layers, (expected.norm1, expected.norm2, expected.norm3), strict=True):
        layer.norm.load_state_dict(norm.state_dict())
    ffn.linear1.load_state_dict(expected.linear1.state_dict())
    ffn.linear2.load_state_dict(expected.linear2.state_dict())

    x, memory = torch.randn(2, 5, 16).double(), torch.randn(2, 9, 16).double()
    nowhere, everywhere = torch.zeros(1, 16).double(), torch.ones(2, 1, 5, 9, dtype=torch.bool)
    actual = self_attention(x, nowhere)
    actual = ffn(cross_attention(actual, nowhere, memory, nowhere, everywhere))
    torch.testing.assert_close(actual, expected(x, memory))


def test_pre_norm_reaches_every_layer() -> None:
    decoder = MaskedTransformerDecoder(num_classes=3, hidden_dim=32, num_layers=2, pre_norm=True)
    layers = [module for module in decoder.modules() if hasattr(module, "pre_norm")]
    assert [layer.pre_norm for layer in layers] == [True] * 6


def test_matches_are_those_of_every_prediction_and_image_alone() -> None:
    """Costs are computed for all predictions of an image at once, and copied for all images at once."""
    targets, layers = [target(3), target(0), target(9)], []
    for _ in range(3):
        logits = torch.randn(3, NUM_QUERIES, NUM_CLASSES + 1)
        layers.append({"pred_logits": logits, "pred_masks": torch.randn(3, NUM_QUERIES, 16, 24)})
    drawn = [torch.rand(len(layers), 64, 2) for _ in targets]
    draws = iter(drawn)
    matcher = HungarianMatcher(num_points=64, rand=lambda *_, **__: next(draws))
    found = list(matcher(layers, targets))
    assert len(found) == len(layers)
    for number, (layer, matches) in enumerate(zip(layers, found, strict=True)):
        for i, wanted in enumerate(targets):
            points = drawn[i][number : number + 1]
            labels = sample_masks(wanted["masks"], points)
            cost = torch.empty(NUM_QUERIES, len(labels), dtype=torch.float64)
            for query in range(NUM_QUERIES):
                predicted = sample_points(layer["pred_masks"][i, query][None, None], points)[0, 0]
                probability = predicted.sigmoid()
                classes = layer["pred_logits"][i, query].softmax(dim=0)
                for number_of_object, label in enumerate(labels):
                    dice = 2 * (probability * label).sum() + 1
                    dice /= probability.sum() + label.sum() + 1
                    mask = F.binary_cross_entropy_with_logits(predicted, label)
                    likely = classes[wanted["labels"][number_of_object]]
                    cost[query, number_of_object] = 5 * mask + 5 * (1 - dice) - 2 * likely
            queries, objects = linear_sum_assignment(cost.cpu().numpy())
            assert matches[i][0].tolist() == queries.tolist()
            assert matches[i][1].tolist() == objects.tolist()


@pytest.mark.cpu  # which pretends to be a device
def test_the_host_waits_once_for_all_predictions_and_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # has no such device
    outputs = {**predictions(), "aux_outputs": [predictions(), predictions()]}
    for prediction in (outputs, *outputs["aux_outputs"]):
        prediction["pred_logits"].requires_grad_(), prediction["pred_masks"].requires_grad_()
    targets, compared = [target(2), target(0)], criterion()
    torch.manual_seed(0)
    expected = compared(outputs, targets)
    sum(expected.values()).backward()
    torch.manual_seed(0)
    with RemoteDevice() as device:
        there, compared.empty_weight = remote(outputs), remote(compared.empty_weight)
        losses = compared(there, remote(targets))
        sum(losses.values()).backward()
        assert len(device.waits) == 1, device.waits
        assert {k: v.item() for k, v in losses.items()} == {
            k: v.item() for k, v in expected.items()
        }
    gradient = there["aux_outputs"][1]["pred_masks"].grad.values
    assert torch.equal(gradient, outputs["aux_outputs"][1]["pred_masks"].grad)
