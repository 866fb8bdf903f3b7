"""The whole head: checkpointing, half types, attention between queries, export."""

import pytest
import torch
from torch import Tensor, nn

from comer_d2.heads.dino import BoxMatcher, DenoisingGenerator, DINOCriterion, DINOHead
from comer_d2.heads.dino.collaborative import CollaborativeGenerator
from tests.device import autocast
from tests.heads.dino.tiny_dino import roughen, tiny_features, tiny_head, tiny_target


def rough_head(**options: object) -> DINOHead:
    torch.manual_seed(0)
    head = tiny_head(**options)
    roughen(head)
    return head


def losses_of(head: DINOHead) -> dict[str, Tensor]:
    torch.manual_seed(1)
    targets = [tiny_target(2), tiny_target(1)]
    outputs = head.train()(tiny_features(64, 96), (64, 96), [(60, 96), (64, 70)], targets)
    return DINOCriterion(matcher=BoxMatcher())(outputs, targets)


def test_a_head_without_queries_is_refused() -> None:
    with pytest.raises(ValueError, match="num_queries must be at least 1, got 0"):
        tiny_head(num_queries=0)


def test_parts_that_do_not_fit_are_refused() -> None:
    parts = {name: getattr(tiny_head(), name) for name in ("neck", "encoder", "proposals")}
    parts |= {name: getattr(tiny_head(), name) for name in ("decoder", "denoising")}
    for name, other, message in (
        ("encoder", tiny_head(num_levels=5).encoder, "num_levels must .* 'encoder': 5"),
        ("denoising", DenoisingGenerator(dim=16, num_classes=7), "num_classes .* 'denoising': 7"),
    ):
        with pytest.raises(ValueError, match=message):
            DINOHead(**{**parts, name: other}, dim=16)
    for layers in ("encoder_layers", "decoder_layers"):
        with pytest.raises(ValueError, match=f"num_layers of the {layers[:7]} must be at least 1"):
            tiny_head(**{layers: 0})
    with pytest.raises(ValueError, match=r"label_noise in \[0, 1\], got 100, 1.0 and 1.5"):
        DenoisingGenerator(num_classes=2, label_noise=1.5)
    with pytest.raises(ValueError, match="at most most_queries, got 10 and 5"):
        CollaborativeGenerator(num_classes=2, least_queries=10, most_queries=5)


def test_a_wrong_number_of_heads_is_told_by_its_own_name() -> None:
    with pytest.raises(ValueError, match="multiple of its 3 heads: change num_heads "):
        tiny_head(num_heads=3)


def test_checkpointing_changes_nothing() -> None:
    plain, saving = rough_head(), rough_head(use_act_checkpoint=True)
    results = []
    for head in (plain, saving):
        losses = losses_of(head)
        sum(losses.values()).backward()
        results.append((losses, {n: p.grad for n, p in head.named_parameters()}))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype: torch.dtype) -> None:
    head = rough_head()
    expected = losses_of(head)
    with autocast(dtype):
        found = losses_of(head)
    for name, loss in found.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, expected[name], rtol=0.2, atol=0.1)
    sum(found.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_denoising_does_not_touch_the_matching_queries() -> None:
    head, features = rough_head().train(), tiny_features(64, 96)
    targets = [tiny_target(2), tiny_target(1)]
    with torch.no_grad():
        plain = head(features, (64, 96)).layers
        with_denoising = head(features, (64, 96), None, targets).layers
    for found, expected in zip(with_denoising, plain, strict=True):
        torch.testing.assert_close(found, expected)


def test_proposals_get_no_gradient_from_the_decoder() -> None:
    head = rough_head().train()
    outputs = head(tiny_features(64, 96), (64, 96), None, [tiny_target(2), tiny_target(1)])
    sum(layer.boxes.sum() + layer.logits.sum() for layer in outputs.layers).backward()
    assert head.proposals.bbox_embed[-1].weight.grad is None
    assert head.encoder.layers[0].linear1.weight.grad is not None


def test_a_layer_learns_from_the_next_layers_boxes() -> None:
    # Look forward twice: the boxes of layer 1 depend on what layer 0 changed, with its gradient.
    head = rough_head().train()
    outputs = head(tiny_features(64, 96), (64, 96))
    outputs.layers[1].boxes.sum().backward()
    assert head.decoder.bbox_embed[0][-1].bias.grad.abs().sum() > 0
    head.zero_grad()
    outputs = head(tiny_features(64, 96), (64, 96))
    outputs.layers[2].boxes.sum().backward()
    assert head.decoder.bbox_embed[0][-1].bias.grad is None


class Detector(nn.Module):
    """What is exported: maps of one size without padding -> classes and boxes."""

    def __init__(self) -> None:
        super().__init__()
        self.head = rough_head().eval()

    def forward(self, res3: Tensor, res4: Tensor, res5: Tensor) -> tuple[Tensor, Tensor]:
        size = [8 * side for side in res3.shape[-2:]]
        (last,) = self.head({"res3": res3, "res4": res4, "res5": res5}, size).layers
        return last.logits, last.boxes


def test_export_at_one_size() -> None:
    maps = tuple(tiny_features(64, 96, 1).values())
    with torch.no_grad():
        exported = torch.export.export(Detector(), maps).module()
        torch.testing.assert_close(exported(*maps), Detector()(*maps))


def test_export_at_any_size() -> None:
    # Three, or the coarsest map would have a side of one, which is a shape of its own.
    h, w = (torch.export.Dim(side, min=3, max=40) for side in "hw")
    shapes = [{2: 4 * h, 3: 4 * w}, {2: 2 * h, 3: 2 * w}, {2: h, 3: w}]
    with torch.no_grad():
        exported = torch.export.export(
            Detector(), tuple(tiny_features(96, 128, 1).values()), dynamic_shapes=shapes
        ).module()
        for size in ((128, 96), (160, 224)):
            maps = tuple(tiny_features(*size, 1).values())
            torch.testing.assert_close(exported(*maps), Detector()(*maps), rtol=1e-4, atol=1e-4)
