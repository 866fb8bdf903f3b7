"""A layer's forward is what computes: hooks, adapters, pruning, quantisation, parametrizations.

Every module with parameters is called in a forward of every network; and whatever replaces or wraps
a linear layer changes the output, and trains.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune

from comer_d2.network import ViTCoMerNet
from tests.networks import make_network, mask2former_head
from tests.weights.cases import CASES, OTHER, SIDE, UNI_PERCEIVER, make_net

SIZE_T = dict(embed_dim=192, num_heads=3, deform_num_heads=6, deform_ratio=1.0)
SMALL = dict(
    embed_dim=24,
    depth=2,
    num_heads=3,
    window_size=2,
    window_block_indexes=(0,),
    pretrain_img_size=64,
    stem_width=8,
    interaction_indexes=((0, 0), (1, 1)),
    deform_num_heads=3,
    num_extra_cti=1,
    gate_init=0.5,
)
# What the families' ViTs differ in, and what adapters are put on.
VITS = {
    **CASES,
    **{layout.__name__: case for layout, case in UNI_PERCEIVER.items()},
}
TARGETS = ["qkv", "proj", "fc1", "fc2", "value_proj"]


def small() -> ViTCoMerNet:
    torch.manual_seed(0)
    return make_network(**SMALL)


def idle(model: nn.Module, *inputs: Any) -> set[str]:
    """Names of the modules with parameters of their own that are not called in a forward."""
    names = {
        name
        for name, module in model.named_modules()
        if name and next(module.parameters(recurse=False), None) is not None
    }
    called = set()
    for name, module in model.named_modules():
        module.register_forward_hook(lambda m, i, o, name=name: called.add(name))
    with torch.no_grad():
        model(*inputs)
    assert names
    return names - called


def test_every_layer_of_size_t_is_called() -> None:
    # The ViT's blocks are called stage by stage; of its own it has the position table alone.
    assert idle(make_network(**SIZE_T), torch.randn(1, 3, 64, 96)) == {"vit"}


@pytest.mark.parametrize("name", VITS)
@pytest.mark.parametrize("windows", [0, 3])
def test_every_layer_of_every_familys_vit_is_called(name: str, windows: int) -> None:
    vit = make_net(VITS[name], window_size=windows, window_block_indexes=(0,)).vit
    assert idle(vit, torch.randn(1, 3, *OTHER, dtype=torch.float64)) == set()


@pytest.mark.parametrize("hidden_dim", [32, 64])
def test_every_layer_of_mask2formers_decoders_is_called(hidden_dim: int) -> None:
    """With and without a projection of the maps to the queries' channels."""
    features = {f"res{i}": torch.randn(1, 24, 256 >> i, 128 >> i) for i in range(2, 6)}
    assert idle(mask2former_head(hidden_dim), features) == set()


def test_hooks_see_every_linear_layer() -> None:
    """What a hook returns is what the network goes on with."""
    net, image = small().eval(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = net(image)
        for name, layer in net.named_modules():
            if isinstance(layer, nn.Linear):
                handle = layer.register_forward_hook(lambda m, i, output: 1.5 * output)
                changed = net(image)
                handle.remove()
                assert not close(changed, before), name
        assert close(net(image), before)


def close(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.allclose(a[name], b[name], atol=1e-6) for name in a)


def adapted(model: nn.Module, *kinds: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers that an adapter with such targets is put on."""
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in kinds:
            assert isinstance(module, nn.Linear | nn.Conv2d), name
            yield name, module


def linears(model: nn.Module, *kinds: str) -> Iterator[tuple[str, nn.Linear]]:
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and (not kinds or name.rpartition(".")[2] in kinds):
            yield name, module


@pytest.mark.parametrize("kind", [*TARGETS, "sampling", "output_proj"])
def test_pruning_takes_effect(kind: str) -> None:
    net, image = small().eval(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        before = net(image)
        layers = [layer for _, layer in linears(net, kind)]
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.2)  # sampling starts at zero
        full = net(image)
        for layer in layers:
            prune.l1_unstructured(layer, "weight", amount=0.9)
        assert not close(net(image), full)
        by_hand = small().eval()
        weights = {name: value for name, value in net.state_dict().items() if "weight_" not in name}
        for name, layer in linears(net, kind):
            weights[f"{name}.weight"] = layer.weight_orig * layer.weight_mask
        by_hand.load_state_dict(weights)
        for name, value in net(image).items():
            torch.testing.assert_close(value, by_hand(image)[name])
    assert before.keys() == full.keys()


class Scaled(nn.Module):
    """A parametrization: the weight times a learned factor."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def forward(self, weight: Tensor) -> Tensor:
        return self.factor * weight


def test_parametrizations_take_effect_and_train() -> None:
    net, image = small(), torch.randn(2, 3, 64, 96)
    for _, layer in linears(net):
        nn.init.normal_(layer.weight, std=0.2)
    net.eval()
    with torch.no_grad():
        before = net(image)
    for _, layer in list(linears(net)):
        parametrize.register_parametrization(layer, "weight", Scaled())
    outputs = net(image)
    assert not close(outputs, before)
    sum((o * torch.randn_like(o)).sum() for o in outputs.values()).backward()
    factors = {n: p.grad for n, p in net.named_parameters() if n.endswith(".factor")}
    assert len(factors) == len(list(linears(net)))
    assert [n for n, grad in factors.items() if grad is None or not grad] == []


@pytest.mark.cpu  # peft is nothing that `make gpu` asks for
@pytest.mark.parametrize("family", ["plain", "beit", "eva02-base", "dinov3-plus"])
def test_lora_changes_the_output_and_trains(family: str) -> None:
    """With peft itself, on all its targets: of each layer both tensors get a gradient."""
    import peft

    if family == "plain":
        net = small()
    else:
        net = make_net(CASES[family], window_size=3, window_block_indexes=(0,))
    net = net.float().eval()
    image = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        before = net(image)
    targets = [*TARGETS, "fc1_g", "fc1_x"]
    layers = [name for name, _ in adapted(net, *targets)]
    config = peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(net, config).eval()
    outputs = model(image)
    assert not close(outputs, before)
    sum((o * torch.randn_like(o)).sum() for o in outputs.values()).backward()
    lora = {n: p for n, p in model.named_parameters() if "lora_" in n}
    assert len(lora) == 2 * len(layers)
    assert [n for n, p in lora.items() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad is None for n, p in model.named_parameters() if "lora_" not in n)
    merged = model.merge_and_unload()
    with torch.no_grad():
        for name, value in merged(image).items():
            torch.testing.assert_close(value, outputs[name], atol=1e-3, rtol=1e-3)


@pytest.mark.cpu  # nor is torchao
def test_weight_only_quantisation() -> None:
    """By torchao: every linear layer holds int8 weights, and the output is that of their values."""
    from torchao import quantization

    net, image = small().eval(), torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for _, layer in linears(net):
            nn.init.normal_(layer.weight, std=0.2)
        before = net(image)
        quantization.quantize_(net, quantization.Int8WeightOnlyConfig())
        outputs = net(image)
        quantised = [layer for _, layer in linears(net)]
        assert all(type(layer.weight.data) is not Tensor for layer in quantised)
        by_hand = small().eval()
        for (_, own), layer in zip(linears(by_hand), quantised, strict=True):
            own.weight.copy_(layer.weight.dequantize())
        expected = by_hand(image)
    for name, value in outputs.items():
        torch.testing.assert_close(value, expected[name], atol=1e-3, rtol=1e-3)
        assert not torch.allclose(value, before[name], atol=1e-4)
