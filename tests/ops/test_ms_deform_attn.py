"""What multi-scale deformable attention computes, on every device that this machine has."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from safetensors.torch import load_file

from comer_d2.ops import (
    ms_deform_attn,
    ms_deform_attn_from_tensors,
    ms_deform_attn_fused,
    ms_deform_attn_fused_reference,
    ms_deform_attn_reference,
)

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHAPES = [(9, 13), (5, 6), (1, 1)]
# Of value, of locations and weights, and what may be off.
DTYPES = [
    (torch.float64, torch.float64, 1e-12),
    (torch.float32, torch.float32, 3e-6),
    (torch.float16, torch.float32, 2e-3),
    (torch.float16, torch.float16, 2e-3),
    (torch.bfloat16, torch.float32, 1.2e-2),
    (torch.bfloat16, torch.bfloat16, 1.2e-2),
]


def plain_loops(value, shapes, locations, weights):
    """The definition, one sample and one corner after the other, in Python floats."""
    batch, _, heads, head_dim = value.shape
    queries, _, levels, points = weights.shape[1:]
    starts = [0, *itertools.accumulate(h * w for h, w in shapes)]
    output = torch.zeros(batch, queries, heads, head_dim, dtype=torch.float64)
    for n, q, m, level, p in itertools.product(
        *map(range, (batch, queries, heads, levels, points))
    ):
        height, width = shapes[level]
        x, y = locations[n, q, m, level, p].tolist()
        if not (math.isfinite(x) and math.isfinite(y)):
            continue
        x, y = x * width - 0.5, y * height - 0.5
        for row, column in itertools.product(
            (math.floor(y), math.floor(y) + 1), (math.floor(x), math.floor(x) + 1)
        ):
            if 0 <= row < height and 0 <= column < width:
                share = (1 - abs(y - row)) * (1 - abs(x - column)) * weights[n, q, m, level, p]
                output[n, q, m] += share * value[n, starts[level] + row * width + column, m]
    return output.flatten(2)


def arguments(
    shapes=SHAPES, batch=2, queries=7, heads=3, head_dim=8, points=2, dtype=torch.float64,
    geometry=None, device="cpu", seed=0,
):  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    pixels, levels = sum(h * w for h, w in shapes), len(shapes)
    value = torch.randn(batch, pixels, heads, head_dim, generator=generator)
    locations = torch.rand(batch, queries, heads, levels, points, 2, generator=generator)
    weights = torch.rand(batch, queries, heads, levels, points, generator=generator)
    geometry = geometry or dtype
    return (
        value.to(device, dtype).requires_grad_(),
        shapes,
        (locations * 1.6 - 0.3).to(device, geometry).requires_grad_(),
        weights.to(device, geometry).requires_grad_(),
    )


def fused_arguments(shapes=SHAPES, batch=2, queries=7, heads=3, head_dim=8, points=2, seed=0,
                    dtype=torch.float64, geometry=None, device="cpu", reference_batch=None,
                    reference_levels=None):  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    pixels, levels = sum(h * w for h, w in shapes), len(shapes)
    value = torch.randn(batch, pixels, heads, head_dim, generator=generator)
    projected = torch.randn(batch, queries, 3 * heads * levels * points, generator=generator) * 3
    reference = torch.rand(
        reference_batch or batch, queries, reference_levels or levels, 2, generator=generator
    )
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return (
        value.to(device, dtype).requires_grad_(),
        shapes,
        projected.to(device, geometry or dtype).requires_grad_(),
        reference.to(device, wide),
    )


def with_gradients(function, value, shapes, first, second):
    output = function(value, shapes, first, second)
    generator = torch.Generator().manual_seed(1)
    grad = torch.randn(output.shape, generator=generator).to(output.device, output.dtype)
    inputs = [tensor for tensor in (value, first, second) if tensor.requires_grad]
    return [output.detach(), *torch.autograd.grad(output, inputs, grad)]


def as_double(value, shapes, first, second):
    return [
        argument.detach().double().requires_grad_(argument.requires_grad)
        if isinstance(argument, torch.Tensor)
        else argument
        for argument in (value, shapes, first, second)
    ]


def assert_close(actual, expected, relative):
    """Within `relative` of the largest magnitude: sums of many terms have no better scale."""
    assert len(actual) == len(expected)
    for got, wanted in zip(actual, expected):
        assert got.shape == wanted.shape
        if wanted.numel() == 0:
            continue
        error = (got.double().cpu() - wanted.double().cpu()).abs().max().item()
        assert error <= relative * max(wanted.abs().max().item(), 1e-30), (
            error,
            wanted.abs().max(),
        )


@pytest.mark.golden("msda_op.safetensors")
@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_reference])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_golden_numbers_of_the_deformable_detr_operator(golden_path, function, dtype, tolerance):
    golden = load_file(golden_path)
    for case in sorted({name.split(".")[0] for name in golden}):
        get = lambda name: golden[f"{case}.{name}"]  # noqa: B023, E731
        inputs = [get(name).to(dtype).requires_grad_() for name in ("value", "loc", "weight")]
        shapes = [tuple(shape) for shape in get("shapes").tolist()]
        output = function(inputs[0], shapes, *inputs[1:])
        grads = torch.autograd.grad(output, inputs, get("grad_out").to(dtype))
        expected = [get(name) for name in ("out", "grad_value", "grad_loc", "grad_weight")]
        assert_close([output, *grads], expected, tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_reference])
def test_the_definition_in_plain_loops(device, function):
    value, shapes, locations, weights = arguments(device=device)
    with torch.no_grad():
        # One sample on each kind of spot: a corner, exactly on a pixel, beyond every edge.
        for i, point in enumerate([(0, 0), (1, 1), (0.5 / 13, 0.5 / 9), (-0.04, 0.5), (1.2, 2.0)]):
            locations[0, i, 0, 0, 0] = torch.tensor(point, dtype=torch.float64)
    expected = plain_loops(value.detach().cpu(), shapes, locations.detach().cpu(), weights.cpu())
    assert_close([function(value, shapes, locations, weights)], [expected.detach()], 1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head_dim", [1, 3, 8, 24, 32, 64, 96, 130])
@pytest.mark.parametrize(("dtype", "geometry", "tolerance"), DTYPES)
def test_head_dimensions_and_dtypes(device, head_dim, dtype, geometry, tolerance):
    given = arguments(head_dim=head_dim, dtype=dtype, geometry=geometry, device=device)
    actual = with_gradients(ms_deform_attn, *given)
    assert [tensor.dtype for tensor in actual] == [dtype, dtype, geometry, geometry]
    assert_close(actual, with_gradients(ms_deform_attn_reference, *as_double(*given)), tolerance)
    # No half type loses more than twice what plain float32 arithmetic and one rounding lose.
    exact = with_gradients(ms_deform_attn_reference, *as_double(*given))
    plain = with_gradients(ms_deform_attn_reference, *given)
    for got, rounded, wanted in zip(actual, plain, exact):
        error = (got.double() - wanted).abs().max()
        assert error <= 2 * (rounded.double() - wanted).abs().max() + 1e-6 * wanted.abs().max()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("head_dim", [5, 64])
@pytest.mark.parametrize("points", [4, 13])
@pytest.mark.parametrize(("dtype", "geometry", "tolerance"), DTYPES)
def test_many_samples_of_few_pixels(device, heads, head_dim, points, dtype, geometry, tolerance):
    """On the CPU a head's pixels are copied for these, and rows of samples take several vectors."""
    sizes = dict(queries=150, heads=heads, head_dim=head_dim, points=points)
    given = arguments(**sizes, dtype=dtype, geometry=geometry, device=device)
    expected = with_gradients(ms_deform_attn_reference, *as_double(*given))
    assert_close(with_gradients(ms_deform_attn, *given), expected, tolerance)
    given = fused_arguments(**sizes, dtype=dtype, geometry=geometry, device=device)
    expected = with_gradients(ms_deform_attn_fused_reference, *as_double(*given))
    assert_close(with_gradients(ms_deform_attn_fused, *given), expected, 2 * tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("batch", [0, 1, 33])
@pytest.mark.parametrize("queries", [0, 5, 70])
def test_batches_and_queries_of_any_number(device, batch, queries):
    given = arguments(batch=batch, queries=queries, device=device)
    expected = with_gradients(ms_deform_attn_reference, *given)
    assert_close(with_gradients(ms_deform_attn, *given), expected, 1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("function", [ms_deform_attn, ms_deform_attn_reference])
@pytest.mark.parametrize(
    "sizes",
    [{"shapes": []}, {"points": 0}, {"heads": 0}, {"head_dim": 0}, {"shapes": [(0, 4), (3, 0)]}],
)
def test_nothing_to_sample_gives_zeros(device, function, sizes):
    given = arguments(**sizes, device=device)
    for tensor in with_gradients(function, *given):
        assert not tensor.any()


@pytest.mark.parametrize("device", DEVICES)
def test_a_level_without_pixels_among_others(device):
    given = arguments(shapes=[(0, 3), (4, 5), (2, 0)], device=device)
    expected = with_gradients(ms_deform_attn_reference, *given)
    assert_close(with_gradients(ms_deform_attn, *given), expected, 1e-12)
    given = fused_arguments(shapes=[(0, 3), (4, 5), (2, 0)], device=device)
    expected = with_gradients(ms_deform_attn_fused_reference, *given)
    assert_close(with_gradients(ms_deform_attn_fused, *given), expected, 1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_huge_and_non_finite_locations_contribute_nothing(device, dtype):
    value, shapes, locations, weights = arguments(dtype=dtype, device=device, queries=40)
    spots = [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e9, -3e9, 1e5, -7.0]
    with torch.no_grad():
        for query, (spot, axis) in enumerate(itertools.product(spots, (0, 1))):
            locations[:, query, :, :, 0, axis] = spot
        for query, spot in enumerate(spots):
            locations[:, 20 + query, :, :, 0, :] = spot
    actual = with_gradients(ms_deform_attn, value, shapes, locations, weights)
    assert all(tensor.isfinite().all() for tensor in actual)
    assert not actual[2][:, :18, :, :, 0].any() and not actual[3][:, :18, :, :, 0].any()
    with torch.no_grad():
        kept = weights.clone()
        kept[:, :18, :, :, 0] = 0
        kept[:, 20:29, :, :, 0] = 0
        inside = locations.clone().nan_to_num(0.5, 0.5, 0.5).clamp(-0.3, 1.3)
    expected = ms_deform_attn_reference(value, shapes, inside, kept)
    assert_close(actual[:1], [expected.detach()], 3e-6)
    expected = with_gradients(ms_deform_attn_reference, value, shapes, locations, weights)
    assert_close(actual, expected, 3e-6)


@pytest.fixture(params=[False, True], ids=["fast", "deterministic"])
def each_mode(request):
    torch.use_deterministic_algorithms(request.param)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_non_finite_weights_outside_the_level_leave_its_gradient_clean(device, bad, each_mode):
    value, shapes, locations, weights = arguments(dtype=torch.float32, device=device)
    outside = [(1.9, 0.5), (0.5, -0.8), (-3.0, 0.5), (1.6, 1.6), (0.5, 1e9), (math.nan, 0.5)]
    with torch.no_grad():
        for query, place in enumerate(outside):
            locations[:, query] = locations.new_tensor(place)
            weights[:, query] = bad
    actual = with_gradients(ms_deform_attn, value, shapes, locations, weights)
    expected = with_gradients(ms_deform_attn_reference, value, shapes, locations, weights)
    assert actual[0][:, : len(outside)].isnan().all()  # the result hides nothing
    assert all(tensor.isfinite().all() for tensor in actual[1:])
    assert not actual[2][:, : len(outside)].any()
    for got, wanted in zip(actual, expected):
        torch.testing.assert_close(got, wanted, equal_nan=True)

    value, shapes, projected, reference = fused_arguments(dtype=torch.float32, device=device)
    with torch.no_grad():  # offsets in pixels: far outside for half of the queries
        projected[:, :3, : 2 * 3 * 3 * 2] = 1000.0
        projected[:, :3, 2 * 3 * 3 * 2 :] = bad
    actual = with_gradients(ms_deform_attn_fused, value, shapes, projected, reference)
    expected = with_gradients(ms_deform_attn_fused_reference, value, shapes, projected, reference)
    assert actual[1].isfinite().all() and not actual[2][:, :3, : 2 * 3 * 3 * 2].any()
    for got, wanted in zip(actual, expected):
        torch.testing.assert_close(got, wanted, equal_nan=True, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("large", [1e30, math.inf])
def test_gradients_beyond_float32_are_not_finite_in_any_mode(device, large, each_mode):
    """Fixed point has no infinity: it had made some number of such products."""
    value, shapes, locations, weights = arguments(dtype=torch.float32, device=device)
    with torch.no_grad():
        weights[:, 0] = 1e20
    output = ms_deform_attn(value, shapes, locations, weights)
    grad = torch.full_like(output, large)
    (actual,) = torch.autograd.grad(output, value, grad)
    output = ms_deform_attn_reference(value, shapes, locations, weights)
    (expected,) = torch.autograd.grad(output, value, grad)
    assert not expected.isfinite().all()
    assert not actual[~expected.isfinite()].isfinite().any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", range(25))
def test_random_sizes(device, seed):
    generator = torch.Generator().manual_seed(1000 + seed)
    draw = lambda low, high: int(torch.randint(low, high, (), generator=generator))  # noqa: E731
    sizes = dict(
        shapes=[(draw(1, 12), draw(1, 12)) for _ in range(draw(1, 5))], batch=draw(1, 4),
        queries=draw(1, 90), heads=draw(1, 6), head_dim=draw(1, 70), points=draw(1, 7), seed=seed,
    )  # fmt: skip
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 5e-6)):
        given = arguments(**sizes, dtype=dtype, device=device)
        expected = with_gradients(ms_deform_attn_reference, *as_double(*given))
        assert_close(with_gradients(ms_deform_attn, *given), expected, tolerance)
        given = fused_arguments(**sizes, dtype=dtype, device=device)
        expected = with_gradients(ms_deform_attn_fused_reference, *as_double(*given))
        assert_close(with_gradients(ms_deform_attn_fused, *given), expected, tolerance)


@pytest.mark.parametrize("device", DEVICES)
def test_non_contiguous_arguments(device):
    value, shapes, locations, weights = (
        argument.detach() if isinstance(argument, torch.Tensor) else argument
        for argument in arguments(device=device)
    )
    strided = (
        value.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_(),
        shapes,
        locations.flip(-1).contiguous().flip(-1).transpose(0, 1).contiguous().transpose(0, 1)
        .requires_grad_(),
        weights.expand(2, *weights.shape)[1].mT.contiguous().mT.requires_grad_(),
    )  # fmt: skip
    assert not any(tensor.is_contiguous() for tensor in strided if isinstance(tensor, torch.Tensor))
    expected = with_gradients(ms_deform_attn_reference, *strided)
    assert_close(with_gradients(ms_deform_attn, *strided), expected, 1e-12)
    output = ms_deform_attn(*strided)
    (grad,) = torch.autograd.grad(output.sum(), strided[0])  # the gradient comes in expanded
    (wanted,) = torch.autograd.grad(ms_deform_attn_reference(*strided).sum(), strided[0])
    assert_close([grad], [wanted], 1e-12)


@pytest.mark.parametrize("device", DEVICES)
def test_a_view_that_starts_at_an_odd_address(device):
    value, shapes, locations, weights = arguments(dtype=torch.float32, device=device)
    shifted = torch.cat([value.new_zeros(1), value.detach().flatten()])[1:].view(value.shape)
    expected = ms_deform_attn(value, shapes, locations, weights)
    torch.testing.assert_close(ms_deform_attn(shifted, shapes, locations, weights), expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("head_dim", [3, 8])
def test_gradcheck(device, head_dim):
    value, shapes, locations, weights = arguments(
        shapes=[(4, 3), (2, 2)], batch=1, queries=3, heads=2, head_dim=head_dim, device=device
    )
    with torch.no_grad():  # away from the pixel borders, where the gradient jumps
        for level, (height, width) in enumerate(shapes):
            size = locations.new_tensor([width, height])
            pixels = locations[:, :, :, level] * size - 0.5
            settled = pixels.floor() + 0.1 + 0.8 * (pixels - pixels.floor())
            locations[:, :, :, level] = (settled + 0.5) / size
    assert torch.autograd.gradcheck(
        lambda v, loc, w: ms_deform_attn(v, shapes, loc, w), (value, locations, weights)
    )


@pytest.mark.parametrize("device", DEVICES)
def test_deterministic_algorithms_repeat_bit_for_bit(device):
    given = arguments(dtype=torch.float32, queries=200, head_dim=32, device=device)
    torch.use_deterministic_algorithms(True)
    try:
        first = with_gradients(ms_deform_attn, *given)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        second = with_gradients(ms_deform_attn, *given)
        torch.set_num_threads(threads)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second))
    assert_close(first, with_gradients(ms_deform_attn_reference, *as_double(*given)), 3e-6)


# ---------------------------------------------------------------------------- fused


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("reference_sizes", [(None, None), (1, None), (1, 1)])
@pytest.mark.parametrize(
    ("dtype", "geometry", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-12),
        (torch.float32, torch.float32, 5e-6),
        (torch.float16, torch.float32, 2e-3),
        (torch.bfloat16, torch.bfloat16, 1.2e-2),
    ],
)
def test_fused_equals_softmax_and_locations_done_before(
    device, reference_sizes, dtype, geometry, tolerance
):
    given = fused_arguments(
        dtype=dtype, geometry=geometry, device=device, points=4, head_dim=32,
        reference_batch=reference_sizes[0], reference_levels=reference_sizes[1],
    )  # fmt: skip
    actual = with_gradients(ms_deform_attn_fused, *given)
    assert [tensor.dtype for tensor in actual] == [dtype, dtype, geometry]
    expected = with_gradients(ms_deform_attn_fused_reference, *as_double(*given))
    assert_close(actual, expected, tolerance)


def test_fused_softmax_is_that_of_torch_for_extreme_logits():
    value, shapes, projected, reference = fused_arguments(dtype=torch.float32)
    with torch.no_grad():
        logits = projected[..., -3 * 3 * 2 :]
        logits[:, 0] = 1e4
        logits[:, 1, ::2] = -1e4
        logits[:, 2, 0] = 300.0
        logits[:, 3] = -300.0
    given = (value, shapes, projected, reference)
    expected = with_gradients(ms_deform_attn_fused_reference, *as_double(*given))
    assert_close(with_gradients(ms_deform_attn_fused, *given), expected, 5e-6)


def test_fused_gives_reference_points_their_gradient_when_they_ask_for_it():
    value, shapes, projected, reference = fused_arguments()
    reference.requires_grad_()
    output = ms_deform_attn_fused(value, shapes, projected, reference)
    expected = ms_deform_attn_fused_reference(value, shapes, projected, reference)
    actual = torch.autograd.grad(output.sum(), reference)
    assert_close(actual, torch.autograd.grad(expected.sum(), reference), 1e-12)


# ---------------------------------------------------------------------------- errors


@pytest.mark.parametrize("function", [ms_deform_attn, "direct"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": lambda v: v[0]}, r"value must have shape \(N, S, M, D\), got \(148, 3, 8\)"),
        ({"value": lambda v: v[:, 1:]}, r"spatial_shapes .* cover 148 pixels, .* has 147"),
        ({"value": lambda v: v.int()}, r"value must be float64, float32, float16 or bfloat16"),
        ({"locations": lambda t: t[..., 0]}, r"sampling_locations must have shape .*, got "),
        ({"locations": lambda t: t[:1]}, r"sampling_locations must have shape .* got \(1, 7"),
        ({"locations": lambda t: t[:, :, :2]}, r"sampling_locations must .* got \(2, 7, 2, 3"),
        ({"locations": lambda t: t[:, :, :, :2]}, r"sampling_locations must .* L = 3 levels"),
        ({"locations": lambda t: t.float()}, r"sampling_locations must have value's dtype"),
        ({"weights": lambda t: t[:, :-1]}, r"attention_weights must have the shape of .*7.*6"),
        ({"weights": lambda t: t.half()}, r"attention_weights must have value's dtype"),
        ({"shapes": lambda s: s[:-1]}, r"spatial_shapes .* cover 147 pixels, .* has 148"),
    ],
)
def test_wrong_arguments_are_named(function, change, message):
    value, shapes, locations, weights = arguments()
    given = {"value": value, "shapes": shapes, "locations": locations, "weights": weights}
    given = {k: change.get(k, lambda x: x)(v) for k, v in given.items()}
    if function == "direct":  # what a caller of torch.ops reaches: the checks of the kernel
        flat = [size for shape in given["shapes"] for size in shape]

        def function(v, _, loc, w):
            return torch.ops.comer_d2.ms_deform_attn(v, flat, loc, w)

    with pytest.raises((ValueError, RuntimeError), match=message):
        function(given["value"], given["shapes"], given["locations"], given["weights"])


def test_wrong_devices_are_named():
    value, shapes, locations, weights = arguments()
    with pytest.raises(ValueError, match="sampling_locations must be on the device of value, cpu"):
        ms_deform_attn(value, shapes, locations.to("meta"), weights)


@pytest.mark.parametrize("function", [ms_deform_attn_fused, "direct"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"projected": lambda t: t[..., :-1]}, r"projected must have shape .* got \(2, 7, 53\)"),
        ({"projected": lambda t: t[:1]}, r"projected must have shape .* got \(1, 7, 54\)"),
        ({"projected": lambda t: t.float()}, r"projected must have value's dtype"),
        ({"reference": lambda t: t[..., :1]}, r"reference_points must have shape .* got \(2, 7"),
        ({"reference": lambda t: t[:, :, :2]}, r"reference_points must have shape .* 2, 2\)"),
        ({"reference": lambda t: t[:, 1:]}, r"reference_points must have shape .* \(2, 6"),
    ],
)
def test_wrong_arguments_of_the_fused_call_are_named(function, change, message):
    value, shapes, projected, reference = fused_arguments()
    projected = change.get("projected", lambda x: x)(projected)
    reference = change.get("reference", lambda x: x)(reference)
    if function == "direct":
        flat = [size for shape in shapes for size in shape]

        def function(v, _, p, r):
            return torch.ops.comer_d2.ms_deform_attn_fused(v, flat, p, r)

    with pytest.raises((ValueError, RuntimeError), match=message):
        function(value, shapes, projected, reference)


def test_the_call_of_deformable_detr():
    value, shapes, locations, weights = arguments()
    sizes, starts = torch.tensor(shapes, dtype=torch.int32), torch.tensor([0, 117, 147])
    expected = ms_deform_attn(value, shapes, locations, weights)
    for step in ((), (64,)):
        actual = ms_deform_attn_from_tensors(value, sizes, starts, locations, weights, *step)
        assert torch.equal(actual, expected)
    with pytest.raises(ValueError, match=r"level_start_index must be \[0, 117, 147\]"):
        ms_deform_attn_from_tensors(value, sizes, starts + 1, locations, weights)


def test_offsets_beyond_32_bits(tmp_path):
    """A value of 2**31 + 2**27 numbers, of which only the touched pages exist."""
    height, width, head_dim = 2**14, 2**13, 17
    pixels = height * width
    path = tmp_path / "value"
    with path.open("wb") as file:
        file.truncate(pixels * head_dim * 2)
    flat = torch.from_file(str(path), shared=True, size=pixels * head_dim, dtype=torch.bfloat16)
    value = flat.view(1, pixels, 1, head_dim)
    assert value.numel() > 2**31
    value[0, -1], value[0, 0] = 3.0, 5.0
    value[0, -width - 1] = 1.0
    centres = torch.tensor([[width - 0.5, height - 0.5], [0.5, 0.5], [width - 0.5, height - 1.0]])
    locations = (centres.double() / torch.tensor([width, height])).float().view(1, 3, 1, 1, 1, 2)
    output = ms_deform_attn(value, [(height, width)], locations, torch.ones(1, 3, 1, 1, 1))
    assert output.float()[0, :, 0].tolist() == [3.0, 5.0, 2.0]
    assert (output == output[..., :1]).all()
