"""What the token convolution computes, on every device that this machine has, and in PyTorch's machinery."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from comer_d2.ops import token_depthwise_conv, token_depthwise_conv_reference

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHAPES = [(5, 21), (6, 8), (1, 1), (3, 4)]  # inside, exactly one tile, narrower than a kernel
FLAT = [size for shape in SHAPES for size in shape]
# Of tokens, of the weights, and what may be off.
DTYPES = [
    (torch.float64, torch.float64, 1e-12),
    (torch.float32, torch.float32, 3e-6),
    (torch.float16, torch.float32, 2e-3),
    (torch.float16, torch.float16, 2e-3),
    (torch.bfloat16, torch.float32, 1.2e-2),
    (torch.bfloat16, torch.bfloat16, 1.2e-2),
]


def arguments(kernels=(3,), channels=12, shapes=SHAPES, batch=2, sets=1, dtype=torch.float64,
              weights=None, device="cpu", seed=0):  # fmt: skip
    """Tokens, shapes, weights and biases by set and group."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *size: torch.randn(*size, generator=generator)  # noqa: E731
    weights, share = weights or dtype, channels // len(kernels)
    tokens = draw(batch, sum(h * w for h, w in shapes), channels)
    weight = [[draw(share, 1, k, k) for k in kernels] for _ in range(sets)]
    bias = [[draw(share) for _ in kernels] for _ in range(sets)]
    to = lambda rows: [[t.to(device, weights).requires_grad_() for t in row] for row in rows]  # noqa: E731
    return tokens.to(device, dtype).requires_grad_(), shapes, to(weight), to(bias)


def leaves(tokens, shapes, weight, bias):
    return [tokens, *(t for rows in (weight, bias) for row in rows for t in row)]


def with_gradients(function, *given):
    output = function(*given)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(output.shape, generator=generator).to(output.device, output.dtype)
    grads = torch.autograd.grad(
        output, leaves(*given), grad, allow_unused=True, materialize_grads=True
    )
    return [output.detach(), *grads]


def as_double(tokens, shapes, weight, bias):
    double = lambda t: t.detach().double().requires_grad_()  # noqa: E731
    rows = lambda rows: [[double(t) for t in row] for row in rows]  # noqa: E731
    return double(tokens), shapes, rows(weight), rows(bias)


def assert_close(actual, expected, relative):
    assert len(actual) == len(expected)
    for got, wanted in zip(actual, expected):
        assert got.shape == wanted.shape
        if wanted.numel():
            error = (got.double().cpu() - wanted.double().cpu()).abs().max().item()
            assert error <= relative * max(wanted.abs().max().item(), 1e-30)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("function", [token_depthwise_conv, token_depthwise_conv_reference])
@pytest.mark.parametrize("sets", [1, 2])
def test_the_definition_in_plain_loops(device, function, sets):
    shapes, kernels = [(3, 4), (2, 1)], (3, 5)
    given = arguments(kernels, 4, shapes, batch=1, sets=sets, device=device)
    tokens, _, weight, bias = (
        t.detach().cpu() if isinstance(t, torch.Tensor) else t for t in given
    )
    expected, start = torch.zeros_like(tokens), 0
    for level, (height, width) in enumerate(shapes):
        number = level if sets > 1 else 0
        for y, x, c in itertools.product(range(height), range(width), range(4)):
            kernel, half = weight[number][c // 2][c % 2, 0].tolist(), kernels[c // 2] // 2
            total = bias[number][c // 2][c % 2].item()
            for i, j in itertools.product(range(2 * half + 1), repeat=2):
                row, column = y + i - half, x + j - half
                if 0 <= row < height and 0 <= column < width:
                    total += kernel[i][j] * tokens[0, start + row * width + column, c].item()
            expected[0, start + y * width + x, c] = total
        start += height * width
    assert_close([function(*given).detach()], [expected], 1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("kernels", "channels"), [
    ((3,), 1), ((3,), 48), ((3,), 96), ((5,), 100), ((3, 5), 26), ((3, 5), 192), ((1, 7), 40),
    ((3, 5, 9), 15), ((31,), 8),
])  # fmt: skip
@pytest.mark.parametrize("sets", [1, len(SHAPES)])
@pytest.mark.parametrize(("dtype", "weights", "tolerance"), DTYPES)
def test_kernels_channels_and_dtypes(device, kernels, channels, sets, dtype, weights, tolerance):
    given = arguments(kernels, channels, sets=sets, dtype=dtype, weights=weights, device=device)
    actual = with_gradients(token_depthwise_conv, *given)
    assert [t.dtype for t in actual] == [dtype, dtype, *[weights] * (len(actual) - 2)]
    exact = with_gradients(token_depthwise_conv_reference, *as_double(*given))
    assert_close(actual, exact, tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(20))
def test_random_sizes(device, seed):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (), generator=generator))  # noqa: E731
    shapes = [(draw(0, 40), draw(0, 40)) for _ in range(draw(1, 5))]
    kernels = [(1, 3, 5, 7)[draw(0, 4)] for _ in range(draw(1, 4))]
    sizes = dict(
        kernels=kernels, channels=len(kernels) * draw(1, 70), shapes=shapes, batch=draw(0, 4),
        sets=(1, len(shapes))[draw(0, 2)], device=device, seed=seed,
    )  # fmt: skip
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 5e-6)):
        given = arguments(**sizes, dtype=dtype)
        expected = with_gradients(token_depthwise_conv_reference, *as_double(*given))
        assert_close(with_gradients(token_depthwise_conv, *given), expected, tolerance)


@pytest.mark.parametrize("device", DEVICES)
def test_one_tensor_is_shared_by_the_levels_and_no_bias_is_zero(device):
    tokens, shapes, weight, bias = arguments(device=device)
    shared = token_depthwise_conv(tokens, shapes, weight[0][0], bias[0][0])
    assert torch.equal(shared, token_depthwise_conv(tokens, shapes, weight, bias))
    without = token_depthwise_conv(tokens, shapes, weight[0][0])
    assert_close([without + bias[0][0]], [shared], 1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_non_contiguous_arguments(device):
    tokens, shapes, weight, bias = arguments((3, 5), device=device)
    tokens = tokens.detach().mT.contiguous().mT.requires_grad_()
    weight = [[w.detach().mT.contiguous().mT.requires_grad_() for w in weight[0]]]
    assert not tokens.is_contiguous() and not weight[0][0].is_contiguous()
    given = (tokens, shapes, weight, bias)
    expected = with_gradients(token_depthwise_conv_reference, *given)
    assert_close(with_gradients(token_depthwise_conv, *given), expected, 1e-12)
    # The output's gradient comes in expanded, the tokens start at an odd address.
    shifted = torch.cat([tokens.new_zeros(1), tokens.detach().flatten()])[1:].view(tokens.shape)
    actual = torch.autograd.grad(
        token_depthwise_conv(shifted, shapes, weight, bias).sum(), weight[0]
    )
    expected = token_depthwise_conv_reference(shifted, shapes, weight, bias)
    assert_close(actual, torch.autograd.grad(expected.sum(), weight[0]), 1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_what_is_not_finite_stays_in_its_level_channel_and_reach(device):
    tokens, shapes, weight, bias = arguments(dtype=torch.float32, device=device)
    with torch.no_grad():
        tokens[0, 0, 3] = torch.inf  # the first pixel of the first level
    output = token_depthwise_conv(tokens, shapes, weight, bias)
    found = {tuple(place) for place in (~output.isfinite()).nonzero().tolist()}
    assert found == {(0, pixel, 3) for pixel in (0, 1, 21, 22)}


@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device):
    tokens, shapes, weight, bias = arguments(
        (3, 5), 4, [(3, 4), (2, 2)], batch=1, sets=2, device=device
    )

    def call(tokens, *flat):
        pairs = lambda flat: [flat[:2], flat[2:]]  # noqa: E731
        return token_depthwise_conv(tokens, shapes, pairs(flat[:4]), pairs(flat[4:]))

    assert torch.autograd.gradcheck(call, leaves(tokens, shapes, weight, bias))


@pytest.mark.parametrize("device", DEVICES)
def test_the_gradient_does_not_depend_on_the_number_of_threads(device):
    given = arguments((3, 5), 64, [(64, 64), (32, 32)], dtype=torch.float32, device=device)
    threads = torch.get_num_threads()
    first = with_gradients(token_depthwise_conv, *given)
    torch.set_num_threads(1)
    second = with_gradients(token_depthwise_conv, *given)
    torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


# ---------------------------------------------------------------------------- PyTorch's machinery


def flat_arguments(device="cpu"):
    tokens, _, weight, bias = arguments((3, 5), sets=4, dtype=torch.float32, device=device)
    flat = [torch.cat([t.detach().flatten() for r in rows for t in r]) for rows in (weight, bias)]
    return tokens.detach(), FLAT, *(t.requires_grad_() for t in flat), [3, 5]


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    tokens, flat, weight, bias, kernels = flat_arguments(device)
    ops = torch.ops.comer_d2
    torch.library.opcheck(
        ops.token_depthwise_conv, (tokens.requires_grad_(), flat, weight, bias, kernels)
    )
    plain = (tokens.detach(), flat, weight.detach(), bias.detach(), kernels)
    torch.library.opcheck(ops.token_depthwise_conv_backward, (torch.randn_like(tokens), *plain))


@pytest.mark.parametrize("device", DEVICES)
def test_compile_gives_what_eager_gives(device):
    given = arguments((3, 5), sets=4, dtype=torch.float32, device=device)
    compiled = torch.compile(token_depthwise_conv, fullgraph=True, backend="aot_eager")
    expected = with_gradients(token_depthwise_conv, *given)
    assert_close(with_gradients(compiled, *given), expected, 1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_narrows_the_tokens_and_reads_float32_weights(dtype, device):
    given = arguments((3, 5), dtype=torch.float32, device=device)
    with torch.autocast(device, dtype=dtype):
        output = token_depthwise_conv(*given)
    assert output.dtype == dtype
    tokens, shapes, weight, bias = given
    assert torch.equal(output, token_depthwise_conv(tokens.to(dtype), shapes, weight, bias))
    grads = torch.autograd.grad(output.float().sum(), leaves(*given))
    assert all(grad.dtype == torch.float32 for grad in grads)
    with torch.autocast(device, dtype=dtype):
        assert token_depthwise_conv(*arguments(device=device)).dtype == torch.float64


def test_other_derivatives_and_vmap_say_that_there_are_none():
    tokens, shapes, weight, bias = arguments()
    (grad,) = torch.autograd.grad(
        token_depthwise_conv(tokens, shapes, weight, bias).square().sum(), tokens, create_graph=True
    )
    with pytest.raises(NotImplementedError, match="token_depthwise_conv has no second derivative"):
        grad.sum().backward()
    tokens, weight = tokens.detach(), weight[0][0].detach()
    call = lambda t: token_depthwise_conv(t, shapes, weight)  # noqa: E731
    with pytest.raises(NotImplementedError, match="token_depthwise_conv has no forward-mode"):
        torch.func.jvp(call, (tokens,), (torch.ones_like(tokens),))
    with pytest.raises(NotImplementedError, match="into the batch dimension"):
        torch.vmap(call)(tokens[None])


def test_flops_are_those_of_conv2d():
    tokens, shapes, weight, bias = arguments((3, 5), 8)
    counts = []
    for function in (token_depthwise_conv, token_depthwise_conv_reference):
        with FlopCounterMode(display=False) as counter:
            output = function(tokens, shapes, weight, bias)
        counts.append(counter.get_total_flops())
        if function is token_depthwise_conv:
            with FlopCounterMode(display=False) as counter:
                output.sum().backward()
            assert counter.get_total_flops() == 2 * counts[0]
    assert counts[0] == counts[1]


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": lambda t: t[0]}, r"tokens must have shape \(B, S, C\), got \(166, 12\)"),
        ({"tokens": lambda t: t[:, 1:]}, r"spatial_shapes .* cover 166 pixels, .* has 165"),
        ({"tokens": lambda t: t.int()}, r"tokens must be float64, float32, float16 or bfloat16"),
        ({"tokens": lambda t: t.float()}, r"weight must have tokens's dtype"),
        ({"tokens": lambda t: t[..., 1:]}, r"weight must "),
        ({"bias": lambda b: [[b[0][0].to("meta")]]}, r"bias must be on the device of tokens"),
        ({"bias": lambda b: [[b[0][0][1:]]]}, r"bias must hold 12 numbers .* got shape \(11,\)"),
        ({"weight": lambda w: [[w[0][0]]] * 2}, r"weight must have the same groups once"),
        ({"weight": lambda w: [[w[0][0][..., 1:]]]}, r"weight must have shape \(C / G, 1, k, k\)"),
        ({"weight": lambda w: [[w[0][0][..., :2, :2]]]}, r"an odd k, got \(12, 1, 2, 2\)"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    names = ("tokens", "shapes", "weight", "bias")
    given = {k: change.get(k, lambda x: x)(v) for k, v in zip(names, arguments())}
    with pytest.raises(ValueError, match=message):
        token_depthwise_conv(*given.values())


@pytest.mark.parametrize(
    ("index", "change", "message"),
    [
        (0, lambda t: t[0], r"tokens must have shape \(B, S, C\), got \(166, 12\)"),
        (0, lambda t: t.int(), r"tokens must be float64, float32, float16 or bfloat16"),
        (0, lambda t: t[:, 1:], r"spatial_shapes .* cover 166 pixels, .* has 165"),
        (1, lambda s: [*s[:-1], 3], r"spatial_shapes \[\(5, 21\), .* cover 163 pixels"),
        (2, lambda w: w[1:], r"weight must hold 4 times 204 numbers .* got 815"),
        (2, lambda w: w.double(), r"weight must have tokens's dtype"),
        (3, lambda b: b[1:], r"bias must hold the 12 channels .* 4 levels, got 47"),
        (4, lambda k: [3, 4], r"kernel_sizes must be odd and at most 255, got 4"),
        (4, lambda k: [3] * 5, r"must be shared equally by the 5 kernel_sizes"),
        (4, lambda k: [3, 3], r"weight must hold 4 times 108 numbers .* got 816"),
    ],
)
def test_a_direct_call_cannot_read_out_of_bounds(index, change, message):
    given = list(flat_arguments())
    given[index] = change(given[index])
    given = [t.detach() if isinstance(t, torch.Tensor) else t for t in given]
    with pytest.raises((ValueError, RuntimeError), match=message):
        torch.ops.comer_d2.token_depthwise_conv(*given)
    with pytest.raises((ValueError, RuntimeError), match=message):
        grad = torch.randn_like(given[0].float())
        torch.ops.comer_d2.token_depthwise_conv_backward(grad, *given)
