"""Weights in a half type: autocast's numbers."""

import pytest
import torch
from torch import nn

from comer_d2.layers.linear import Linear
from comer_d2.layers.narrow import narrow_weights, narrowed
from tests.device import autocast, device_type, seeded
from tests.networks import make_network
from tests.weights.cases import CASES, SIDE, make_net


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["plain", "beit", "eva02-base"])
def test_the_same_numbers_as_autocasts(family: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    if family == "plain":
        net = make_network(
            embed_dim=24, num_heads=3, deform_num_heads=3, pretrain_img_size=64, gate_init=0.5
        )
    else:
        net = make_net(CASES[family], window_size=3, window_block_indexes=(0,))
    net, image = net.float().eval(), torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad(), autocast(dtype):
        before = net(image)
        narrow_weights(net, dtype)
        after = net(image)
    for name, value in before.items():
        assert torch.equal(after[name], value), name
    kinds = {p.dtype for p in net.parameters()}
    assert kinds == {dtype, torch.float32}


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Linear(8, 16), nn.Linear(16, 4))


def step(net: nn.Module, together: bool) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    x = torch.randn(3, 8, generator=seeded(1))
    parts = [net] if together else []
    with autocast(torch.bfloat16), narrowed(*parts, device=device_type()):
        output = net(x)
    output.float().square().sum().backward()
    return output, [p.grad for p in net.parameters()]


@pytest.mark.parametrize("frozen", [(), (0,), (0, 1, 2, 3)])
def test_weights_cast_together_give_autocasts_step(frozen: tuple[int, ...]) -> None:
    """To the bit, with float32 gradients, and none for what is frozen."""
    results = []
    for together in (False, True):
        net = nn.Sequential(nn.Linear(8, 8), two_layers())
        net[0].load_state_dict({"weight": torch.eye(8), "bias": torch.ones(8)})
        for i, parameter in enumerate(net[1].parameters()):
            parameter.requires_grad_(i not in frozen)
        results.append(step(net, together))
    (output, grads), (other, others) = results
    assert torch.equal(output, other)
    for grad, wanted in zip(grads, others, strict=True):
        assert (grad is None) == (wanted is None)
        assert grad is None or (grad.dtype == torch.float32 and torch.equal(grad, wanted))


def test_layers_have_their_own_weights_before_and_after() -> None:
    net = two_layers()
    weight, parameters = net[0].weight, list(net.parameters())
    with autocast(torch.bfloat16):
        with narrowed(net, device=device_type()):
            assert net[0].weight.dtype == torch.bfloat16
            assert next(iter(net.parameters())) is weight
            assert net.state_dict()["0.weight"].dtype == torch.float32
        assert net[0].weight is weight
        with pytest.raises(RuntimeError, match="on purpose"), narrowed(net, device=device_type()):
            raise RuntimeError("on purpose")
        with torch.no_grad(), narrowed(net, device=device_type()):
            assert net[0].weight is weight  # autocast's business
    with narrowed(net, device=device_type()):
        assert net[0].weight is weight
    assert [id(p) for p in net.parameters()] == [id(p) for p in parameters]


def halve(module: nn.Module, _: object) -> None:
    with torch.no_grad():
        module.weight.mul_(0.5)


@pytest.mark.parametrize("where", ["spectral norm", "weight norm", "a change of weights"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_hooks_find_and_change_a_modules_own_weights(where: str) -> None:
    """As under autocast alone: a weight that a hook changes stays changed."""
    results = []
    for together in (False, True):
        net = two_layers()
        if where == "spectral norm":
            nn.utils.spectral_norm(net[0])
        elif where == "weight norm":
            nn.utils.weight_norm(net[0])
        else:
            net[0].register_forward_pre_hook(halve)
        output, grads = step(net, together)
        results.append([output, *grads, *net.state_dict().values()])
    for value, expected in zip(*results, strict=True):
        assert torch.equal(value, expected)


@pytest.mark.parametrize("checkpointing", [False, True, "stage"])
def test_a_step_of_the_network_casts_in_few_operations(checkpointing: bool | str) -> None:
    """One cast forth and one back for each stage, not for every weight, recomputing or not."""
    net = make_network(
        embed_dim=24,
        num_heads=3,
        deform_num_heads=3,
        pretrain_img_size=64,
        use_act_checkpoint=checkpointing,
    )
    image = torch.randn(1, 3, SIDE, SIDE)
    with torch.profiler.profile() as profile:
        with autocast(torch.bfloat16):
            outputs = net(image)
        sum(o.float().sum() for o in outputs.values()).backward()
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::_foreach_copy_"] == 2 * 6
    assert calls["aten::_to_copy"] < 300  # activations: each weight by itself would be 250 more
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in net.parameters())
