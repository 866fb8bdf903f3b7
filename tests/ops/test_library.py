"""The compiled libraries: instruction sets, what happens without one, and that CUDA compiles."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from comer_d2.ops import cpu_capability, library_status

ROOT = Path(__file__).parents[2]

# Runs in a fresh process: the instruction set is chosen once.
COMPARE = """
import torch
from comer_d2.ops import *
from comer_d2.ops import cpu_capability
assert cpu_capability() == "{name}", cpu_capability()
shapes = [(9, 13), (4, 5), (1, 1)]
for dtype, tolerance in (
    (torch.float64, 1e-12), (torch.float32, 5e-6), (torch.float16, 2e-3), (torch.bfloat16, 1.2e-2)
):
    for head_dim in (1, 3, 8, 12, 24, 32, 64, 96, 200):
        torch.manual_seed(head_dim)
        geometry = torch.float64 if dtype == torch.float64 else torch.float32
        value = torch.randn(2, 138, 3, head_dim).to(dtype).requires_grad_()
        projected = torch.randn(2, 40, 3 * 3 * 3 * 4).mul(3).to(geometry).requires_grad_()
        reference = torch.rand(1, 40, 1, 2, dtype=geometry)
        wide = [tensor.detach().double().requires_grad_() for tensor in (value, projected)]
        expected = ms_deform_attn_fused_reference(wide[0], shapes, wide[1], reference.double())
        grad = torch.randn(expected.shape).to(dtype)
        wanted = [expected, *torch.autograd.grad(expected, wide, grad.double())]
        fused = ms_deform_attn_fused(value, shapes, projected, reference)
        plain = ms_deform_attn_fused_reference(
            value, shapes, projected, reference, attention=ms_deform_attn
        )
        for output in (fused, plain):
            got = [output, *torch.autograd.grad(output, (value, projected), grad)]
            for a, b in zip(got, wanted):
                error = (a.double() - b).abs().max() / b.abs().max()
                assert error < tolerance, (dtype, head_dim, error)
        tokens = torch.randn(2, 138, 2 * head_dim).to(dtype).requires_grad_()
        sets = [
            [torch.randn(head_dim, 1, k, k, dtype=geometry).requires_grad_() for k in (3, 5)]
            for _ in shapes
        ]
        leaves = [tokens, *(kernel for row in sets for kernel in row)]
        wide = [tensor.detach().double().requires_grad_() for tensor in leaves]
        wide_sets = [wide[1:3], wide[3:5], wide[5:7]]
        expected = token_depthwise_conv_reference(wide[0], shapes, wide_sets)
        grad = torch.randn(expected.shape).to(dtype)
        output = token_depthwise_conv(tokens, shapes, sets)
        got = [output, *torch.autograd.grad(output, leaves, grad)]
        for a, b in zip(got, [expected, *torch.autograd.grad(expected, wide, grad.double())]):
            error = (a.double() - b).abs().max() / b.abs().max()
            assert error < tolerance, (dtype, head_dim, "convolution", error)
"""

# What an editable install of another checkout leaves in the interpreter: it knows a library for names
# that the package's own folder does not have.
FALL_BACK = """
import importlib.util, sys, warnings
class OfAnotherCheckout:
    def find_spec(self, name, path=None, target=None):
        if name in ("comer_d2._C", "comer_d2._C_cuda"):
            return importlib.util.spec_from_file_location(name, "{elsewhere}/" + name[9:] + ".abi3.so")
sys.meta_path.append(OfAnotherCheckout())
import torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    from comer_d2 import ops
    torch.manual_seed(0)
    value = torch.randn(2, 26, 2, 8, requires_grad=True)
    locations = torch.rand(2, 6, 2, 2, 3, 2, requires_grad=True)
    weights = torch.rand(2, 6, 2, 2, 3, requires_grad=True)
    assert not caught, [str(w.message) for w in caught]
    for _ in range(2):
        output = ops.ms_deform_attn(value, [(4, 5), (2, 3)], locations, weights)
        grads = torch.autograd.grad(output.sum(), (value, locations, weights))
    direct = ops.registry.ops.ms_deform_attn(value, [4, 5, 2, 3], locations, weights)
    projected = torch.randn(2, 6, 36, requires_grad=True)
    fused = ops.ms_deform_attn_fused(value, [(4, 5), (2, 3)], projected, torch.rand(1, 6, 1, 2))
    fused.sum().backward()
ours = [w for w in caught if issubclass(w.category, ops.OperatorWarning)]
assert len(ours) == 1, [str(w.message) for w in caught]
assert "{problem}" in str(ours[0].message), ours[0].message
assert "pip install --no-build-isolation -e ." in str(ours[0].message)
assert ops.cpu_capability() is None and "{problem}" in ops.library_status()["cpu"]
expected = ops.ms_deform_attn_reference(value, [(4, 5), (2, 3)], locations, weights)
assert torch.equal(output, expected) and torch.equal(direct, expected)
for a, b in zip(grads, torch.autograd.grad(expected.sum(), (value, locations, weights))):
    assert torch.equal(a, b)
tokens, kernel = torch.randn(2, 26, 8), torch.randn(8, 1, 3, 3, requires_grad=True)
convolved = ops.token_depthwise_conv(tokens, [(4, 5), (2, 3)], kernel)
wanted = ops.token_depthwise_conv_reference(tokens, [(4, 5), (2, 3)], kernel)
assert torch.equal(convolved, wanted)
a, b = (torch.autograd.grad(x.square().sum(), kernel)[0] for x in (convolved, wanted))
torch.testing.assert_close(a, b)
try:
    ops.ms_deform_attn(value[:, 1:], [(4, 5), (2, 3)], locations, weights)
except ValueError as error:
    assert "cover 26 pixels" in str(error)
else:
    raise AssertionError("a wrong shape went through")
compiled = torch.compile(ops.ms_deform_attn, fullgraph=True, backend="aot_eager")
torch.testing.assert_close(compiled(value, [(4, 5), (2, 3)], locations, weights), expected)
"""


def run(script: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess:
    passive = {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2", "PYTHONPATH": str(folder)}
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=folder,
        env={**os.environ, **passive, **environment},
        capture_output=True,
        text=True,
    )


def instruction_sets() -> list[str]:
    """From the one in use down to the one that every machine has."""
    known = ["avx512", "avx2", "sse2"]
    best = cpu_capability()
    return known[known.index(best) :] if best in known else [name for name in [best] if name]


@pytest.mark.parametrize("name", instruction_sets())
def test_every_instruction_set_of_this_machine(name):
    result = run(COMPARE.replace("{name}", name), COMER_D2_CPU_CAPABILITY=name)
    assert result.returncode == 0, result.stderr


def test_an_unknown_instruction_set_is_named():
    result = run("import comer_d2.ops as o; o.cpu_capability()", COMER_D2_CPU_CAPABILITY="avx1024")
    assert "COMER_D2_CPU_CAPABILITY must be one of" in result.stderr
    assert "got avx1024" in result.stderr


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of the operators alone, in which nothing was built."""
    shutil.copytree(ROOT / "comer_d2" / "ops", tmp_path / "comer_d2" / "ops")
    (tmp_path / "comer_d2" / "__init__.py").touch()
    return tmp_path


def test_without_a_library_the_reference_runs_and_one_warning_says_how_to_build(checkout):
    problem = f"there is no _C library in {checkout / 'comer_d2'}"
    script = FALL_BACK.replace("{elsewhere}", str(ROOT / "comer_d2")).replace("{problem}", problem)
    result = run(script, checkout)
    assert result.returncode == 0, result.stderr


def test_a_stale_library_is_not_used(checkout):
    shutil.copy(ROOT / "comer_d2" / "_C.abi3.so", checkout / "comer_d2")
    source = checkout / "comer_d2" / "ops" / "library.py"
    text, count = re.subn(r"^OP_VERSION = \d+$", "OP_VERSION = 999", source.read_text(), flags=re.M)
    assert count == 1
    source.write_text(text)
    problem = f"{checkout / 'comer_d2' / '_C.abi3.so'} is stale (version "
    script = FALL_BACK.replace("{elsewhere}", str(ROOT / "comer_d2")).replace("{problem}", problem)
    result = run(script, checkout)
    assert result.returncode == 0, result.stderr


def test_the_libraries_that_this_machine_can_build_are_built():
    status, folder = library_status(), ROOT / "comer_d2"
    assert re.fullmatch(rf"compiled \(\w+\), {folder / '_C.abi3.so'}", status["cpu"]), status
    if torch.version.cuda and shutil.which("nvcc") and os.environ.get("FORCE_CUDA") != "0":
        assert status["cuda"] == f"compiled, {folder / '_C_cuda.abi3.so'}", status


def test_the_cuda_library_holds_a_kernel_for_every_schema():
    if not library_status()["cuda"].startswith("compiled"):
        return  # nothing was built, which the test above judges
    for name in (
        "ms_deform_attn",
        "ms_deform_attn_backward",
        "ms_deform_attn_fused",
        "ms_deform_attn_fused_backward",
        "token_depthwise_conv",
        "token_depthwise_conv_backward",
    ):
        has = torch._C._dispatch_has_kernel_for_dispatch_key(f"comer_d2::{name}", "CUDA")
        assert has, name
