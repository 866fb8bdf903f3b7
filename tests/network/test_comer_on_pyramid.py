"""ViT-CoMer on hierarchical networks of timm: untouched at the start, every stage at its own level."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from comer_d2.network import ViTCoMerNet
from comer_d2.network.timm_pyramid import STAGED, TimmPyramid
from comer_d2.network.trunk import STRIDES

SWIN = (
    "swin_tiny_patch4_window7_224",
    dict(embed_dim=12, num_heads=(1, 2, 2, 4), depths=(1, 1, 3, 1)),
)
# A small one of every module of timm that ViT-CoMer can stand on.
TRUNKS: dict[str, tuple[str, dict[str, Any]]] = {
    "convnext": ("test_convnext", {}),
    "davit": (
        "davit_tiny",
        dict(embed_dims=(12, 24, 48, 96), num_heads=(1, 2, 2, 4), depths=(1, 1, 3, 1)),
    ),
    "focalnet": ("focalnet_tiny_srf", {}),
    "inception_next": ("inception_next_atto", {}),
    "mambaout": ("test_mambaout", {}),
    "swin_transformer": SWIN,
    "swin_transformer_v2": (
        "swinv2_tiny_window8_256",
        dict(embed_dim=12, num_heads=(1, 2, 2, 4), depths=(1, 1, 3, 1)),
    ),
}


def make_net(
    trunk: tuple[str, dict[str, Any]] = SWIN, drop_path_rate: float = 0.0, **changes: Any
) -> ViTCoMerNet:
    name, arguments = trunk
    torch.manual_seed(0)
    return ViTCoMerNet(
        TimmPyramid(name, drop_path_rate=drop_path_rate, arguments=arguments),
        **{
            "stem_width": 8,
            "deform_num_heads": 4,
            "deform_ratio": 1.0,
            "num_extra_cti": 1,
            "vit_features": "stages",
            **changes,
        },
    )


def trunk_maps(net: ViTCoMerNet, image: Tensor) -> list[Tensor]:
    """The trunk's maps inside the whole network, of all four strides."""
    seen = []
    maps = net.vit.maps

    def watched(*arguments: Any) -> list[Tensor]:
        seen.extend(maps(*arguments))
        return seen

    net.vit.maps = watched
    net(image)
    del net.vit.maps
    return seen


def test_every_module_has_a_case() -> None:
    assert set(TRUNKS) == set(STAGED)


@pytest.mark.parametrize("module", TRUNKS)
def test_at_the_start_the_trunk_is_timms(module: str) -> None:
    """The gates of CTI to V are zero: whatever flows, features are timm's, bit for bit."""
    net = make_net(TRUNKS[module]).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = net.vit.net(image)  # timm's own extractor of features
        maps = trunk_maps(net, image)
    if net.vit.channels_last:
        expected = [m.permute(0, 3, 1, 2) for m in expected]
    for stride, m, e in zip(STRIDES.values(), maps, expected, strict=True):
        assert m.shape[-2:] == (64 // stride, 96 // stride)
        assert torch.equal(m, e)


@pytest.mark.parametrize("module", TRUNKS)
def test_every_parameter_gets_a_gradient_and_outputs_have_one_width(module: str) -> None:
    """A parameter without one is an error under DistributedDataParallel."""
    net = make_net(TRUNKS[module], drop_path_rate=0.1)
    outputs = net(torch.randn(2, 3, 50, 61))
    assert net.embed_dim == net.vit.channels["res4"]
    assert {name: tuple(o.shape) for name, o in outputs.items()} == {
        "res2": (2, net.embed_dim, 13, 16),
        "res3": (2, net.embed_dim, 7, 8),
        "res4": (2, net.embed_dim, 4, 4),
        "res5": (2, net.embed_dim, 2, 2),
    }
    sum(o.square().mean() for o in outputs.values()).backward()
    assert not [name for name, p in net.named_parameters() if p.grad is None]


def test_interactions_are_at_the_stages_of_their_strides() -> None:
    net = make_net(gate_init=1.0).eval()
    assert net.interaction_indexes == [(1, 1), (2, 4), (5, 5)]  # the block of stride 4 is before
    stages = [interaction.stage for interaction in net.interactions]
    assert [(stage.level, stage.dim) for stage in stages] == [(0, 24), (1, 48), (2, 96)]
    assert [i.cti_to_v.gamma.shape[0] for i in net.interactions] == [24, 48, 96]


def test_stages_are_added_to_their_own_level() -> None:
    """Of the CNN tokens, CTI to C first changes those of the stage's stride, and no others."""
    net = make_net(cnn_feature_interaction=False, use_mrfp=False, use_cti_to_v=False).eval()
    image = torch.randn(1, 3, 64, 96)
    sizes = [96, 24, 6]  # tokens of strides 8, 16 and 32
    with torch.no_grad():
        _, before = net.cnn_tokens(image)
        tokens = []
        for interaction in net.interactions:
            interaction.register_forward_hook(lambda m, i, output: tokens.append(output))
        net(image)
        for i, (x, c) in enumerate(tokens[:2]):
            changes = (c - before).split(sizes, dim=1)
            for level, change in enumerate(changes):
                if level == i:
                    expected = net.interactions[i].to_cnn(x)
                    torch.testing.assert_close(change, expected, rtol=1e-4, atol=1e-5)
                else:
                    assert not change.any()
            before = c


def resized(m: Tensor, size: tuple[int, int]) -> Tensor:
    if m.shape[-2] > size[0]:
        return F.avg_pool2d(m, m.shape[-2] // size[0])
    return F.interpolate(m, size, mode="bilinear")


@pytest.mark.parametrize("level", [0, 1, 2])
def test_an_open_gate_brings_every_level_to_the_stages_map(level: int) -> None:
    """What is injected is the sum of all levels at the stage's size, projected, times the gate."""
    net = make_net(gate_init=0.5, use_mrfp=False).eval()
    to_v = net.interactions[level].cti_to_v
    seen: dict[str, Any] = {}
    to_v.ffn.register_forward_hook(lambda m, i, o: seen.update(o=o))
    to_v.register_forward_hook(lambda m, i, o: seen.update(x=i[0], injected=o))
    sizes = [(8, 12), (4, 6), (2, 3)]
    with torch.no_grad():
        net(torch.randn(1, 3, 64, 96))
        parts = seen["o"].split([96, 24, 6], dim=1)
        maps = [p.transpose(1, 2).unflatten(2, s) for p, s in zip(parts, sizes, strict=True)]
        total = sum(resized(m, sizes[level]) for m in maps)
        expected = seen["x"] + 0.5 * to_v.to_trunk(total.flatten(2).transpose(1, 2))
    torch.testing.assert_close(seen["injected"], expected)


def test_a_stage_can_have_several_interactions() -> None:
    net = make_net(interaction_indexes=((1, 1), (2, 3), (4, 4), (5, 5))).eval()
    assert [interaction.stage.level for interaction in net.interactions] == [0, 1, 1, 2]
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for m, expected in zip(trunk_maps(net, image), net.vit(image).values(), strict=True):
            assert torch.equal(m, expected)


def test_activation_checkpointing_changes_nothing() -> None:
    image = torch.randn(2, 3, 64, 64)
    results = []
    for checkpointing in (False, True):
        net = make_net(use_act_checkpoint=checkpointing, gate_init=0.5, drop_path_rate=0.3).train()
        runs: list[int] = []
        for block in net.vit.net["layers_0"].blocks:
            block.register_forward_pre_hook(lambda m, i, runs=runs: runs.append(1))
        torch.manual_seed(1)
        sum(o.square().mean() for o in net(image).values()).backward()
        results.append({name: p.grad for name, p in net.named_parameters()})
        assert len(runs) == 1 + checkpointing  # the stage before the interactions, too
    for name, grad in results[0].items():
        torch.testing.assert_close(grad, results[1][name])


def test_padding_inside_is_padding_outside() -> None:
    net = make_net(gate_init=0.5).eval()
    image = torch.randn(1, 3, 40, 50)
    with torch.no_grad():
        inside = net(image)
        outside = net(F.pad(image, (0, 14, 0, 24)))
    for name, stride in STRIDES.items():
        height, width = -(-40 // stride), -(-50 // stride)
        assert torch.equal(inside[name], outside[name][..., :height, :width])


@pytest.mark.parametrize("wanted", [["res2"], ["res3", "res5"]])
def test_parameters_of_outputs_that_are_not_wanted_are_frozen(wanted: list[str]) -> None:
    net = make_net(out_features=wanted)
    sum(o.square().mean() for o in net(torch.randn(1, 3, 64, 64)).values()).backward()
    assert not [n for n, p in net.named_parameters() if p.requires_grad and p.grad is None]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(vit_features="last"), "'last' is of plain ViTs: swin_.* take 'stages'"),
        (
            dict(interaction_indexes=((0, 1), (2, 4), (5, 5))),
            r"cover the blocks 1\.\.5 .* strides 8, 16 and 32 of swin_.* are 1\.\.1, 2\.\.4, 5\.\.5",
        ),
        (dict(interaction_indexes=((1, 2), (3, 5))), r"blocks 1\.\.2 cross two stages"),
        (dict(trunk=("test_resnet", {})), "test_resnet has no place for ViT-CoMer .* swin_"),
        (dict(trunk=("pvt_v2_b0", {})), "pvt_v2_b0 has no place for ViT-CoMer"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_net(**changes)


def test_export_equals_eager() -> None:
    net = make_net(gate_init=0.5).eval()
    image = torch.randn(1, 3, 64, 96)
    exported = torch.export.export(net, (image,)).module()
    with torch.no_grad():
        for name, value in net(image).items():
            torch.testing.assert_close(exported(image)[name], value, rtol=1e-4, atol=1e-5)
