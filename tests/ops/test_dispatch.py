"""The operator among PyTorch's machinery: opcheck, compile, export, autocast, vmap, FLOPs."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from comer_d2.ops import (
    ms_deform_attn,
    ms_deform_attn_fused,
    ms_deform_attn_reference,
    token_depthwise_conv,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHAPES = [(4, 5), (2, 3)]
FLAT = [4, 5, 2, 3]


@pytest.fixture(params=DEVICES, autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """Where the test makes its tensors."""
    if request.param == "cpu":
        yield request.param
        return
    with torch.device(request.param):
        yield request.param


def arguments(dtype=torch.float32):
    torch.manual_seed(0)
    value = torch.randn(2, 26, 2, 8).to(dtype).requires_grad_()
    locations = torch.rand(2, 6, 2, 2, 3, 2).requires_grad_()
    return value, locations, torch.rand(2, 6, 2, 2, 3).requires_grad_()


def fused_arguments(dtype=torch.float32):
    torch.manual_seed(0)
    value = torch.randn(2, 26, 2, 8).to(dtype).requires_grad_()
    return value, torch.randn(2, 6, 36).requires_grad_(), torch.rand(1, 6, 1, 2)


class Attention(torch.nn.Module):
    """A deformable attention as a network has it: one linear layer before, one behind."""

    def __init__(self) -> None:
        super().__init__()
        self.project = torch.nn.Linear(16, 36)
        self.output = torch.nn.Linear(16, 16)

    def forward(self, query, value, reference):
        batch, pixels, _ = value.shape
        projected = self.project(query)
        fused = ms_deform_attn_fused(value.view(batch, pixels, 2, 8), SHAPES, projected, reference)
        locations = reference[:, :, None, :, None] + projected[..., :24].view(batch, -1, 2, 2, 3, 2)
        weights = projected[..., 24:].view(batch, -1, 2, 2, 3)
        plain = ms_deform_attn(value.view(batch, pixels, 2, 8), SHAPES, locations, weights)
        return self.output(fused + plain)


def module_inputs():
    torch.manual_seed(0)
    return torch.randn(2, 6, 16), torch.randn(2, 26, 16), torch.rand(1, 6, 1, 2)


def test_opcheck_of_every_schema():
    value, locations, weights = arguments()
    ops = torch.ops.comer_d2
    torch.library.opcheck(ops.ms_deform_attn, (value, FLAT, locations, weights))
    grad = torch.randn(2, 6, 16)
    plain = [tensor.detach() for tensor in (value, locations, weights)]
    torch.library.opcheck(ops.ms_deform_attn_backward, (grad, plain[0], FLAT, *plain[1:]))
    value, projected, reference = fused_arguments()
    torch.library.opcheck(ops.ms_deform_attn_fused, (value, FLAT, projected, reference))
    torch.library.opcheck(
        ops.ms_deform_attn_fused_backward,
        (grad, value.detach(), FLAT, projected.detach(), reference),
    )


def test_compile_gives_what_eager_gives():
    module, inputs = Attention(), module_inputs()
    expected = module(*inputs)
    expected.sum().backward()
    grads = [parameter.grad.clone() for parameter in module.parameters()]
    module.zero_grad()
    actual = torch.compile(module, fullgraph=True, backend="aot_eager")(*inputs)
    actual.sum().backward()
    torch.testing.assert_close(actual, expected)
    for parameter, grad in zip(module.parameters(), grads):
        torch.testing.assert_close(parameter.grad, grad)


def test_export_with_a_free_batch():
    module, inputs = Attention(), module_inputs()
    batch = torch.export.Dim("batch", min=2, max=64)
    program = torch.export.export(
        module, inputs, dynamic_shapes={"query": {0: batch}, "value": {0: batch}, "reference": {}}
    )
    more = (torch.randn(5, 6, 16), torch.randn(5, 26, 16), inputs[2])
    torch.testing.assert_close(program.module()(*more), module(*more))
    targets = {str(node.target) for node in program.graph.nodes}
    assert {"comer_d2.ms_deform_attn.default", "comer_d2.ms_deform_attn_fused.default"} <= targets


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_narrows_the_value_and_keeps_the_locations(dtype, device):
    value, locations, weights = arguments()
    with torch.autocast(device, dtype=dtype):
        output = ms_deform_attn(value, SHAPES, locations, weights)
    assert output.dtype == dtype
    with torch.no_grad():
        expected = ms_deform_attn(value.to(dtype), SHAPES, locations, weights)
    assert torch.equal(output, expected)  # float32 locations: rounded ones would differ
    grads = torch.autograd.grad(output.float().sum(), (value, locations, weights))
    assert all(grad.dtype == torch.float32 for grad in grads)
    value, projected, reference = fused_arguments()
    with torch.autocast(device, dtype=dtype):
        output = ms_deform_attn_fused(value, SHAPES, projected, reference)
        of_half = ms_deform_attn_fused(value, SHAPES, projected.to(dtype), reference)
    assert output.dtype == of_half.dtype == dtype


def test_autocast_leaves_float64_alone(device):
    value, locations, weights = (tensor.detach().double() for tensor in arguments())
    with torch.autocast(device, dtype=torch.bfloat16):
        assert ms_deform_attn(value, SHAPES, locations, weights).dtype == torch.float64


def test_double_backward_says_that_there_is_none():
    value, locations, weights = arguments()
    output = ms_deform_attn(value, SHAPES, locations, weights)
    (grad,) = torch.autograd.grad(output.square().sum(), value, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()
    value, projected, reference = fused_arguments()
    output = ms_deform_attn_fused(value, SHAPES, projected, reference)
    (grad,) = torch.autograd.grad(output.square().sum(), value, create_graph=True)
    with pytest.raises(NotImplementedError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("which", [0, 1])
def test_forward_mode_says_that_there_is_none(which):
    value, locations, weights = (tensor.detach() for tensor in arguments())
    value_f, projected, reference = (tensor.detach() for tensor in fused_arguments())
    flat = (value, FLAT, locations, weights)
    raw = torch.ops.comer_d2
    for call, name, primal in (
        (lambda v: ms_deform_attn(v, SHAPES, locations, weights), "ms_deform_attn", value),
        (lambda w: ms_deform_attn(value, SHAPES, locations, w), "ms_deform_attn", weights),
        (lambda p: ms_deform_attn_fused(value_f, SHAPES, p, reference), "_fused", projected),
        (lambda loc: raw.ms_deform_attn(value, FLAT, loc, weights), "ms_deform_attn", locations),
        (lambda g: raw.ms_deform_attn_backward(g, *flat)[0], "_backward", torch.randn(2, 6, 16)),
    ):
        tangent = torch.ones_like(primal)
        with pytest.raises(NotImplementedError, match=f"{name} has no forward-mode derivative"):
            if which == 0:
                torch.func.jvp(call, (primal,), (tangent,))
            else:
                with torch.autograd.forward_ad.dual_level():
                    call(torch.autograd.forward_ad.make_dual(primal, tangent))
    with torch.autograd.forward_ad.dual_level():  # nothing asks for one here
        assert torch.equal(ms_deform_attn(value, SHAPES, locations, weights),
                           raw.ms_deform_attn(*flat))  # fmt: skip


def test_vmap_says_what_to_do():
    value, locations, weights = (tensor.detach() for tensor in arguments())
    mapped = torch.vmap(lambda v: ms_deform_attn(v, SHAPES, locations, weights))
    with pytest.raises(NotImplementedError, match="into the batch dimension"):
        mapped(torch.stack([value, value]))


def test_transforms_of_torch_func_say_that_there_are_none():
    value, locations, weights = (tensor.detach() for tensor in arguments())

    def total(function):
        return lambda v: function(v, SHAPES, locations, weights).sum()

    with pytest.raises(NotImplementedError, match=r"use backward, or ms_deform_attn_reference"):
        torch.func.grad(total(ms_deform_attn))(value)
    found = torch.func.grad(total(ms_deform_attn_reference))(value)
    torch.testing.assert_close(
        found, torch.autograd.functional.vjp(total(ms_deform_attn), value)[1]
    )


def test_shapes_without_memory():
    """On the meta device, where there is no autocast to ask for."""
    value, locations, weights = (tensor.detach().to("meta") for tensor in arguments())
    output = ms_deform_attn(value, SHAPES, locations, weights)
    assert output.is_meta and output.shape == (2, 6, 16)
    value, projected, reference = (tensor.detach().to("meta") for tensor in fused_arguments())
    assert ms_deform_attn_fused(value, SHAPES, projected, reference).shape == (2, 6, 16)
    tokens, kernel = torch.zeros(2, 26, 8, device="meta"), torch.zeros(8, 1, 3, 3, device="meta")
    assert token_depthwise_conv(tokens, SHAPES, kernel).shape == (2, 26, 8)


def test_flops_are_counted():
    value, locations, weights = arguments()
    with FlopCounterMode(display=False) as counter:
        ms_deform_attn(value, SHAPES, locations, weights).sum().backward()
    samples = 2 * 6 * 2 * 2 * 3
    # 8 a sample and channel forward (four corners, multiplied and added), 16 backward
    assert counter.get_total_flops() == 24 * samples * 8
    value, projected, reference = fused_arguments()
    with FlopCounterMode(display=False) as counter:
        ms_deform_attn_fused(value, SHAPES, projected, reference).sum().backward()
    assert counter.get_total_flops() == 24 * samples * 8


def test_only_what_asks_for_a_gradient_gets_one():
    value, locations, weights = arguments()
    value = value.detach()
    output = ms_deform_attn(value, SHAPES, locations, weights)
    output.sum().backward()
    expected = ms_deform_attn_reference(value, SHAPES, locations, weights)
    (wanted,) = torch.autograd.grad(expected.sum(), weights)
    torch.testing.assert_close(weights.grad, wanted)
