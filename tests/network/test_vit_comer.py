"""The whole network: sizes, shapes, switches, checkpointing, compilation."""

import math

import pytest
import torch
from torch import nn

from comer_d2.network import ViTCoMerNet
from comer_d2.network.interaction import ConvFFN
from comer_d2.network.trunk import STRIDES
from tests.device import autocast, no_default_device
from tests.networks import make_network

TINY = dict(
    embed_dim=24,
    depth=4,
    num_heads=3,
    window_size=3,
    window_block_indexes=(0, 2),
    pretrain_img_size=64,
    stem_width=8,
    interaction_indexes=((0, 0), (1, 1), (2, 2), (3, 3)),
    deform_num_heads=3,
    deform_ratio=1.0,
)
# A zero gate would hide everything that CTI to V does.
OPEN_GATE = dict(gate_init=0.5)

SIZES = {
    "T": dict(embed_dim=192, num_heads=3, deform_num_heads=6, deform_ratio=1.0),
    "S": dict(embed_dim=384, num_heads=6, deform_num_heads=6, deform_ratio=1.0),
    "B": dict(),
    "L": dict(
        embed_dim=1024,
        depth=24,
        num_heads=16,
        deform_num_heads=16,
        pretrain_img_size=384,
        interaction_indexes=((0, 5), (6, 11), (12, 17), (18, 23)),
    ),
}


def tiny(**changes) -> ViTCoMerNet:
    torch.manual_seed(0)
    return make_network(**TINY | OPEN_GATE | changes)


@pytest.mark.parametrize(
    ("size", "count"),
    [("T", 8_739_680), ("S", 30_007_136), ("B", 108_150_656), ("L", 342_282_304)],
)
def test_parameter_counts(size, count):
    """The published networks', with a position table of 14 x 14 (L: 24 x 24) rows and a class row."""
    with torch.device("meta"):
        net = make_network(**SIZES[size])
    assert sum(p.numel() for p in net.parameters()) == count


@pytest.mark.parametrize("size", [(64, 96), (32, 32), (33, 65), (1, 1), (50, 61)])
def test_any_size_equals_padding_outside(size):
    h, w = size
    net = tiny().eval()
    image = torch.randn(2, 3, h, w)
    padded = nn.functional.pad(image, (0, -w % 32, 0, -h % 32))
    with torch.no_grad():
        outputs, expected = net(image), net(padded)
    for name, stride in STRIDES.items():
        rows, columns = math.ceil(h / stride), math.ceil(w / stride)
        assert outputs[name].shape == (2, 24, rows, columns)
        assert torch.equal(outputs[name], expected[name][..., :rows, :columns])


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 0, 64)])
def test_a_wrong_image_is_named(shape):
    with pytest.raises(ValueError, match=r"image must have shape \(B, 3, h, w\).*got"):
        tiny()(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(num_heads=5), "embed_dim 24 must be a multiple of num_heads 5"),
        (dict(deform_num_heads=5), "24 value channels .* multiple of its 5 heads"),
        (dict(pretrain_img_size=225), "pretrain_img_size 225 must be a multiple of 16"),
        (dict(interaction_indexes=((0, 1), (3, 3))), r"must cover the blocks 0\.\.3"),
        (dict(interaction_indexes=((0, 1), (2, 3)), vit_features="stages"), "got 2 interactions"),
        (dict(vit_features="all"), "vit_features must be"),
        (dict(window_block_indexes=(0, 4)), r"\[4\] are not blocks"),
        (dict(window_size=(3, 3)), "names 2 blocks, but depth is 4"),
        (dict(use_cti_to_v=(True, False)), "use_cti_to_v has 2 values for 4 interactions"),
        (dict(mrfp_kernel_sizes=(3, 4)), r"must be odd, got \(3, 4\)"),
        (dict(mrfp_kernel_sizes=(3, 5, 7, 9, 11)), "multiple of its 5 kernel sizes"),
        (dict(mrfp_kernel_sizes=()), "mrfp_kernel_sizes is empty"),
        (dict(cffn_ratio=0), "cffn_ratio 0 of 24 channels .* None for no feed-forward"),
        (dict(num_extra_cti=-1), "num_extra_cti must be at least 0, got -1"),
        (dict(use_rel_pos_bias=True, num_prefix_tokens=2), "at most one prefix token"),
        (dict(rope="2d"), "rope must be one of .*'dinov3', 'eva02'.* got '2d'"),
        (dict(mlp="glu"), "mlp must be 'swiglu' or a name of timm's activations, got 'glu'"),
        (dict(qkv_bias="q"), "qkv_bias must be one of .*'qkv', 'qv', 'none'.* got 'q'"),
        (dict(sub_norms=("ffn",)), r"sub_norms must be some of .* got \['ffn'\]"),
        (dict(out_features=("res6",)), "out_features must be some of"),
        (dict(use_act_checkpoint="block"), "use_act_checkpoint must be .* got 'block'"),
        (dict(norm="SBN"), "norm must be .* got 'SBN'"),
    ],
)
def test_arguments_that_do_not_fit_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        make_network(**TINY | changes)


@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(use_cti_to_v=False),
        dict(use_cti_to_c=False),
        dict(use_mrfp=False),
        dict(use_mrfp=False, use_cti_to_v=False, use_cti_to_c=False, num_extra_cti=0),
        dict(use_cti_to_v=(True, False, True, False), use_cti_to_c=(False, True, False, True)),
        dict(cnn_feature_interaction=False),
        dict(cnn_feature_interaction=(True, False, True, False)),
        dict(mrfp_kernel_sizes=(3,)),
        dict(mrfp_kernel_sizes=(3, 5, 7)),
        dict(interaction_indexes=((0, 3),)),
        dict(interaction_indexes=((0, 1), (2, 3)), num_extra_cti=1),
        dict(vit_features="stages"),
        dict(vit_features="none"),
        dict(use_abs_pos=False),
        dict(pretrain_use_cls_token=False),
        dict(layer_scale_init=None),
        dict(cffn_ratio=None),
        dict(window_size=(0, 2, 0, 5)),
        dict(window_size=3, window_block_indexes=None, use_rel_pos_bias=True, qkv_bias="qv"),
        dict(deform_ratio=0.5, deform_num_points=2),
    ],
    ids=str,
)
def test_every_parameter_of_every_variant_gets_a_gradient(changes):
    """A parameter without one would break DistributedDataParallel."""
    net = tiny(**changes)
    outputs = net(torch.randn(2, 3, 64, 96))
    sum((o * torch.randn_like(o)).sum() for o in outputs.values()).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


def test_ablations_change_the_output():
    image = torch.randn(1, 3, 64, 64)
    full = tiny().eval()
    with torch.no_grad():
        reference = full(image)["res4"]
        for switch in ("use_mrfp", "use_cti_to_v", "use_cti_to_c", "cnn_feature_interaction"):
            net = tiny(**{switch: False}).eval()
            net.load_state_dict(full.state_dict(), strict=False)
            assert not torch.allclose(net(image)["res4"], reference, atol=1e-3), switch


def test_without_feed_forward_branches():
    """It is the network whose branches give zero, and has no parameter of theirs."""
    full, without = tiny().eval(), tiny(cffn_ratio=None).eval()
    for module in full.modules():
        if isinstance(module, ConvFFN):
            nn.init.zeros_(module.fc2.weight)
            nn.init.zeros_(module.fc2.bias)
    branches = {name for name in full.state_dict() if ".ffn." in name}
    # After CTI to V and to C of 4 interactions; in front of 4 extra blocks, and after each.
    assert len(branches) == (2 * 4 + 2 * 4) * 8
    assert set(without.state_dict()) == set(full.state_dict()) - branches
    without.load_state_dict(full.state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for name, value in without(image).items():
            torch.testing.assert_close(value, full(image)[name])


def test_a_closed_gate_leaves_the_vit_untouched():
    net = tiny(gate_init=0.0).eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        x = net.vit.tokens(image)
        for block in net.vit.blocks:
            x = block(x, 4, 6)
        seen = {}
        net.interactions[-1].register_forward_hook(lambda m, i, o: seen.update(x=o[0]))
        net(image)
    assert torch.equal(seen["x"], x)


@pytest.mark.parametrize("kind", [True, "stage"])
def test_activation_checkpointing_changes_nothing(kind):
    """Same outputs, gradients and batch-norm statistics, with the same random draws."""
    image = torch.randn(2, 3, 64, 64)
    results = []
    for checkpointing in (False, kind):
        net = tiny(use_act_checkpoint=checkpointing, drop_path_rate=0.5).train()
        torch.manual_seed(1)
        outputs = net(image)
        sum(o.square().mean() for o in outputs.values()).backward()
        results.append((outputs, dict(net.named_parameters()), dict(net.named_buffers())))
    (outputs, params, buffers), (other_outputs, other_params, other_buffers) = results
    for name in outputs:
        assert torch.equal(outputs[name], other_outputs[name])
    for name, p in params.items():
        torch.testing.assert_close(p.grad, other_params[name].grad)
    for name, b in buffers.items():
        assert torch.equal(b, other_buffers[name]), name


def test_activation_checkpointing_reaches_blocks_and_interactions():
    """Each of them runs again in the backward pass."""
    net = tiny(use_act_checkpoint=True)
    runs = {}
    parts = {f"blocks.{i}": b for i, b in enumerate(net.vit.blocks)}
    for i, interaction in enumerate(net.interactions):
        parts[f"{i}.mrfp"] = interaction.mrfp
        parts[f"{i}.cti_to_v"] = interaction.cti_to_v
        parts[f"{i}.cti_to_c"] = interaction.cti_to_c
    for name, part in parts.items():
        part.register_forward_pre_hook(
            lambda m, i, name=name: runs.update({name: runs.get(name, 0) + 1})
        )
    sum(o.sum() for o in net(torch.randn(1, 3, 64, 64)).values()).backward()
    assert runs == dict.fromkeys(parts, 2)


def test_activation_checkpointing_by_stage_keeps_what_goes_between_stages() -> None:
    """Each stage runs again in the backward pass, and less is kept than without."""
    image = torch.randn(1, 3, 64, 64)
    kept, runs = {}, {}
    for kind in (False, True, "stage"):
        net = tiny(use_act_checkpoint=kind)
        calls: list[nn.Module] = []
        for block in net.vit.blocks:
            block.register_forward_pre_hook(lambda m, i, calls=calls: calls.append(m))
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, sizes=sizes: (sizes.append(t.numel()), t)[1], lambda t: t
        ):
            outputs = net(image)
        kept[kind] = sum(sizes)
        sum(o.sum() for o in outputs.values()).backward()
        runs[kind] = [calls.count(block) for block in net.vit.blocks]
    assert kept["stage"] < kept[True] < kept[False]
    assert runs == {False: [1] * 4, True: [2] * 4, "stage": [2] * 4}


def test_drop_path_rates():
    net = tiny(drop_path_rate=0.3)
    rates = [(b.drop_path1.drop_prob, b.drop_path2.drop_prob) for b in net.vit.blocks]
    torch.testing.assert_close(rates, [(0.3 * i / 3,) * 2 for i in range(4)])
    to_v, to_c = net.interactions[0].cti_to_v, net.interactions[0].cti_to_c
    assert to_v.ffn.drop_path.drop_prob == to_c.feature_interaction.ffn.drop_path.drop_prob == 0.3


def test_one_image_equals_its_place_in_a_batch():
    net = tiny().eval()
    images = torch.randn(3, 3, 64, 96)
    with torch.no_grad():
        batch, one = net(images), net(images[1:2])
    for name in STRIDES:
        torch.testing.assert_close(one[name], batch[name][1:2], atol=1e-5, rtol=1e-5)


def test_autocast_stays_close_to_float32():
    net = tiny().eval()
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        exact = net(image)
        with autocast(torch.bfloat16):
            rough = net(image)
    for name in STRIDES:
        error = (rough[name].float() - exact[name]).norm() / exact[name].norm()
        assert error < 0.05


def test_an_empty_batch():
    outputs = tiny().eval()(torch.zeros(0, 3, 64, 64))
    assert [tuple(o.shape) for o in outputs.values()] == [
        (0, 24, 64 // s, 64 // s) for s in STRIDES.values()
    ]


def test_export_equals_eager():
    net = tiny().eval()
    image = torch.randn(1, 3, 64, 96)
    exported = torch.export.export(net, (image,)).module()
    with torch.no_grad():
        for name, value in exported(image).items():
            torch.testing.assert_close(value, net(image)[name])


def test_compile_without_graph_breaks_equals_eager() -> None:
    # The partitioned forward and backward graphs, without the minutes that a compiler's C++ takes; in
    # float64, for some gradients cancel to rounding noise.
    net = tiny(
        depth=2, window_block_indexes=(0,), interaction_indexes=((0, 0), (1, 1)), num_extra_cti=1
    ).double()
    image = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    results = []
    for call in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
        net.zero_grad()
        with no_default_device():
            outputs = call(image)
            sum(output.square().mean() for output in outputs.values()).backward()
        results.append((outputs, {name: p.grad.clone() for name, p in net.named_parameters()}))
    torch.testing.assert_close(results[1], results[0], atol=1e-12, rtol=0)
