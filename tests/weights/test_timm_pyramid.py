"""Weights of timm's hierarchical networks: every tensor of the whole model has its place, or it is an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from comer_d2.network import ViT, ViTCoMerNet
from comer_d2.network.timm_pyramid import TimmPyramid
from comer_d2.weights import WeightsError, load_weights
from tests.weights.cases import randomise

SWIN = "swin_tiny_patch4_window7_224"
SMALL = dict(embed_dim=12, num_heads=(1, 2, 2, 4), depths=(1, 1, 2, 1))
# Each way in which timm's extractors name modules: `layers_0`, `stem_0`, `layer1`, `model.`, and those
# that drop modules between.
MODELS: dict[str, dict[str, Any]] = {
    SWIN: SMALL,
    "test_convnext": {},
    "test_resnet": {},
    "test_efficientnet": {},
    "pvt_v2_b0": dict(embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)),
    "twins_svt_small": dict(
        embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)
    ),
}


def whole_model(name: str, **changes: Any) -> nn.Module:
    """timm's own model with its head, every parameter and statistic random."""
    arguments = {**MODELS[name], **changes}
    if name == SWIN:
        arguments |= dict(strict_img_size=False, always_partition=True)
    model = randomise(timm.create_model(name, num_classes=7, **arguments)).eval()
    for key, buffer in model.named_buffers():
        if key.endswith(("running_mean", "running_var")):
            buffer.uniform_(0.5, 1.5)
    return model


def pyramid(name: str = SWIN, **changes: Any) -> TimmPyramid:
    return TimmPyramid(name, arguments={**MODELS[name], **changes}).eval()


def on_disk(path: Path, weights: dict[str, Tensor]) -> Path:
    save_file({key: tensor.contiguous() for key, tensor in weights.items()}, path)
    return path


@pytest.mark.parametrize("name", MODELS)
def test_a_file_of_the_whole_model_gives_timms_features(name: str, tmp_path: Path) -> None:
    whole, net = whole_model(name), pyramid(name)
    weights = whole.state_dict()
    report = load_weights(net, on_disk(tmp_path / "model.safetensors", weights))
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = whole.forward_intermediates(image, intermediates_only=True)
        maps = list(net(image).values())
    for m, e in zip(maps, expected[-4:], strict=True):
        torch.testing.assert_close(m, e, rtol=1e-5, atol=1e-5)
    assert not report.fresh
    assert report.source_elements == sum(tensor.numel() for tensor in weights.values())
    loaded = sum(entry.elements for entry in report.of("loaded"))
    assert loaded == sum(tensor.numel() for tensor in net.state_dict().values())
    unused = {entry.source for entry in report.of("not used")}
    assert any(name.endswith("weight") for name in unused)  # of the classifier
    assert all(
        "head and norm" in e.note or "norm and head" in e.note for e in report.of("not used")
    )


def test_into_the_trunk_of_vit_comer_and_the_rest_is_fresh(tmp_path: Path) -> None:
    net = ViTCoMerNet(
        pyramid(), stem_width=4, deform_num_heads=4, vit_features="stages", num_extra_cti=0
    )
    whole = whole_model(SWIN)
    report = load_weights(net, on_disk(tmp_path / "swin.safetensors", whole.state_dict()))
    own, theirs = net.vit.net.state_dict(), whole.state_dict()
    for key, tensor in own.items():
        assert torch.equal(tensor, theirs[key.replace("layers_", "layers.")])
    fresh = {key for key in net.state_dict() if not key.startswith("vit.")}
    assert set(report.fresh) == {k for k in fresh if not k.endswith("num_batches_tracked")}


def test_its_own_checkpoints_are_read() -> None:
    first, second = randomise(pyramid()), pyramid()
    load_weights(second, first.state_dict(), complete=True)
    for key, tensor in first.state_dict().items():
        assert torch.equal(second.state_dict()[key], tensor)


def test_masks_and_indices_of_older_files_are_computed_here() -> None:
    weights = dict(whole_model(SWIN).state_dict())
    weights["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49).long()
    weights["layers.2.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
    report = load_weights(pyramid(), weights)
    notes = {entry.source: entry.note for entry in report.of("not used")}
    for name in ("layers.0.blocks.0.attn.relative_position_index", "layers.2.blocks.1.attn_mask"):
        assert notes[name] == "computed here, not learnt"


@pytest.mark.filterwarnings("ignore")  # of torch, about timm's code
def test_tables_of_another_window_are_resized_as_timm_does() -> None:
    """Window 7 of the file, 8 here: timm's own filter is the oracle."""
    weights = whole_model(SWIN).state_dict()
    target = timm.create_model(SWIN, strict_img_size=False, img_size=256, window_size=8, **SMALL)
    expected = timm.models.swin_transformer.checkpoint_filter_fn(weights, target)
    net = pyramid(img_size=256, window_size=8)
    report = load_weights(net, weights)
    tables = [key for key in net.net.state_dict() if key.endswith("bias_table")]
    assert len(tables) == len(report.of("resampled")) == 5
    for key in tables:
        table = net.net.state_dict()[key]
        assert table.shape[0] == 15 * 15
        assert torch.equal(table, expected[key.replace("layers_", "layers.")])


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda w: w.pop("layers.2.blocks.1.mlp.fc1.bias"),
            r"layers_2\.blocks\.1\.mlp\.fc1\.bias: m",
        ),
        (lambda w: w.update(extra=torch.zeros(1)), "extra"),
        (
            lambda w: w.update({"patch_embed.proj.weight": torch.zeros(12, 3, 2, 2)}),
            r"patch_embed\.proj\.weight: of shape \(12, 3, 2, 2\), in the model \(12, 3, 4, 4\)",
        ),
        (
            lambda w: w.update(
                {"layers.0.blocks.0.attn.relative_position_bias_table": torch.zeros(170, 1)}
            ),
            r"bias_table: of shape \(170, 1\), in the model \(169, 1\)",
        ),
    ],
)
def test_what_is_missing_foreign_or_of_another_shape_is_an_error(damage: Any, message: str) -> None:
    weights, net = dict(whole_model(SWIN).state_dict()), pyramid()
    damage(weights)
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    with pytest.raises(WeightsError, match=message):
        load_weights(net, weights)
    assert all(torch.equal(tensor, before[key]) for key, tensor in net.state_dict().items())


def test_weights_of_another_network_are_an_error() -> None:
    weights = whole_model("test_convnext").state_dict()
    with pytest.raises(WeightsError, match=r"does not fit|nothing that is known here"):
        load_weights(pyramid(), weights)


def test_a_pretrained_network_is_no_whole_model() -> None:
    weights = whole_model(SWIN).state_dict()
    net = ViTCoMerNet(
        pyramid(), stem_width=4, deform_num_heads=4, vit_features="stages", num_extra_cti=0
    )
    with pytest.raises(
        WeightsError, match=rf"pretrained backbone \(timm's {SWIN}\).*Train from it"
    ):
        load_weights(net, weights, complete=True)


def test_timm_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same architecture loads; another one is refused with both names."""
    whole, net = whole_model(SWIN), pyramid()
    other = timm.create_model("test_resnet")
    create_model = timm.create_model

    def pretrained(name: str, **arguments: Any) -> nn.Module:
        if not arguments.get("pretrained"):
            return create_model(name, **arguments)
        return whole if name.startswith(SWIN) else other

    monkeypatch.setattr(timm, "create_model", pretrained)
    report = load_weights(net, f"timm:{SWIN}.ms_in1k")
    assert report.source == f"timm:{SWIN}.ms_in1k"
    assert torch.equal(net.net["patch_embed"].proj.weight, whole.patch_embed.proj.weight)
    with pytest.raises(
        WeightsError, match=rf"timm:test_resnet\.r160_in1k is timm's test_resnet, .* has {SWIN}"
    ):
        load_weights(net, "timm:test_resnet.r160_in1k")
    vit = ViT(embed_dim=24, depth=1, num_heads=3, window_block_indexes=())
    with pytest.raises(WeightsError, match="no ViT that is known here"):
        load_weights(vit, f"timm:{SWIN}.ms_in1k")
