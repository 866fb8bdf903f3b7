"""What `benchmarks/gpu.py` runs, part by part: each proves or measures one thing on one device.

On the CPU the same code runs at tiny sizes, so that it is known to work before it meets a GPU; what it
measures there means nothing, and no target is set.
"""

from __future__ import annotations

import copy
import functools
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import xml.etree.ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import op
import rounds
import torch
import traffic
from torch import Tensor, nn

ROOT = op.ROOT


class SkippedError(Exception):
    """The part needs what this machine does not have; the message says what."""


class FailedError(Exception):
    """What the part was to prove does not hold; the message says what."""


@dataclass(frozen=True)
class Target:
    """A figure that must not be larger than its limit."""

    name: str
    value: float
    limit: float

    @property
    def met(self) -> bool:
        return self.value <= self.limit


@dataclass
class Figures:
    """What a part found: rows of name -> value, and targets."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)


def run_command(command: list[str], **environment: str) -> str:
    """Output of a command; FailedError with its last lines where it fails."""
    python_path = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    result = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(python_path), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    print(result.stdout, flush=True)
    if result.returncode:
        last = " | ".join(result.stdout.strip().splitlines()[-3:])
        raise FailedError(f"{' '.join(command[1:4])} ended with {result.returncode}: {last}")
    return result.stdout


# ------------------------------------------------------------------------------------------------
# Right


def build(device: str) -> Figures:
    """Builds the libraries into the package's own folder, for this card alone, and loads them."""
    from torch.utils.cpp_extension import CUDA_HOME

    if device != "cuda" or CUDA_HOME is None:
        missing = "CUDA toolkit with nvcc" if device == "cuda" else "GPU that torch can use"
        raise SkippedError(f"no {missing}; what follows runs the library that is there")
    card = ".".join(map(str, torch.cuda.get_device_capability()))
    run_command(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace", "--force"],
        FORCE_CUDA="1",
        TORCH_CUDA_ARCH_LIST=os.environ.get("TORCH_CUDA_ARCH_LIST", card),
    )
    script = (
        "import json; from comer_d2.ops import library_status; print(json.dumps(library_status()))"
    )
    status = json.loads(run_command([sys.executable, "-c", script]).splitlines()[-1])[device]
    if not status.startswith("compiled"):
        raise FailedError(status)
    return Figures([{"library": status}])


def run_tests(arguments: list[str], **environment: str) -> Figures:
    """Counts of a pytest run; FailedError where a test failed or none ran."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments]
        # Most tests wait for launches, so that several processes share a GPU well.
        command += [] if find_missing("xdist") else ["-n", str(min(4, os.cpu_count() or 1))]
        try:
            run_command([*command, f"--junitxml={report}"], **environment)
        except FailedError:
            if not report.exists():
                raise
        suite = xml.etree.ElementTree.parse(report).getroot()
    cases = list(suite.iter("testcase"))
    wrong = [c for c in cases if c.find("failure") is not None or c.find("error") is not None]
    skipped = [c for c in cases if c.find("skipped") is not None]
    if wrong or not cases:
        names = ", ".join(c.get("name", "?") for c in wrong[:5])
        raise FailedError(f"{len(wrong)} of {len(cases)} tests failed: {names}")
    return Figures([{"passed": len(cases) - len(skipped), "skipped": len(skipped)}])


def tests_of_operators(device: str) -> Figures:
    """tests/ops, those that name CUDA."""
    if device == "cuda":
        return run_tests(["tests/ops", "-k", "cuda", "-m", "not slow"])
    return run_tests(["tests/ops/test_token_depthwise_conv.py", "-k", "plain_loops and cpu"])


def tests_of_networks(device: str) -> Figures:
    """Layers, network and heads, golden numbers and gradients among them, with everything on the device."""
    if device == "cuda":
        # timm's own networks are not what is to be shown here.
        rest = ["--ignore=tests/network/test_timm_pyramid.py", "-m", "not slow"]
        return run_tests(["tests/layers", "tests/network", "tests/heads", "--device=cuda", *rest])
    return run_tests(["tests/layers/test_levels.py", "--device=cpu"])


def every_kernel(device: str) -> int:
    """Small calls of every kernel in every type, head size, direction and mode; how many there were."""
    from comer_d2.ops import ms_deform_attn, ms_deform_attn_fused, token_depthwise_conv

    torch.manual_seed(0)
    shapes, heads, calls = [(7, 9), (4, 5), (1, 1)], 3, 0
    pixels = sum(h * w for h, w in shapes)
    draw = functools.partial(torch.randn, device=device)
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        geometry = torch.float64 if dtype == torch.float64 else torch.float32
        for deterministic in (False, True):
            torch.use_deterministic_algorithms(deterministic)
            for head_dim in (5, 8, 16, 32, 64):
                value = draw(2, pixels, heads, head_dim).to(dtype).requires_grad_()
                projected = draw(2, pixels, heads * 3 * 4 * 3).to(geometry).requires_grad_()
                reference = torch.rand(1, pixels, 1, 2, device=device, dtype=geometry)
                locations = draw(2, pixels, heads, 3, 4, 2).to(geometry).requires_grad_()
                weights = draw(2, pixels, heads, 3, 4).to(geometry).requires_grad_()
                ms_deform_attn(value, shapes, locations, weights).sum().backward()
                ms_deform_attn_fused(value, shapes, projected, reference).sum().backward()
                calls += 4
        torch.use_deterministic_algorithms(False)
        for kernels in ((3,), (5,), (3, 5), (7,)):
            channels = 24 * len(kernels)
            tokens = draw(2, pixels, channels).to(dtype).requires_grad_()
            sets = [
                [draw(24, 1, k, k).to(geometry).requires_grad_() for k in kernels] for _ in shapes
            ]
            token_depthwise_conv(tokens, shapes, sets).sum().backward()
            calls += 2
    if device == "cuda":
        torch.cuda.synchronize()
    return calls


def sanitizer(device: str) -> Figures:
    """compute-sanitizer's memcheck and racecheck over every kernel."""
    if device != "cuda":
        raise SkippedError(
            f"no GPU that torch can use; {every_kernel(device)} calls ran on the CPU"
        )
    from torch.utils.cpp_extension import CUDA_HOME

    folders = [os.environ.get("PATH", ""), *([str(Path(CUDA_HOME) / "bin")] if CUDA_HOME else [])]
    program = shutil.which("compute-sanitizer", path=os.pathsep.join(folders))
    if program is None:
        raise SkippedError("no compute-sanitizer, neither on PATH nor in the CUDA toolkit")
    rows = []
    script = "import gpu_parts; print(gpu_parts.every_kernel('cuda'), 'calls')"
    for tool in ("memcheck", "racecheck"):
        output = run_command(
            [program, f"--tool={tool}", "--error-exitcode=9", sys.executable, "-c", script],
            PYTHONPATH=str(ROOT / "benchmarks"),
            PYTORCH_NO_CUDA_MEMORY_CACHING="1",  # an allocation of its own for each tensor
        )
        said = [line for line in output.splitlines() if "SUMMARY" in line]
        rows.append({"tool": tool, "says": said[-1].strip("= ") if said else "nothing"})
    return Figures(rows)


@contextmanager
def everything_on(device: str) -> Iterator[None]:
    """Float32 that means it, and tensors on the device, while the context is open."""
    torch.backends.cudnn.allow_tf32 = False
    with torch.device(device):
        yield


def golden(device: str) -> Figures:
    """Errors of whole networks against the authors' numbers: float32, and forwards in half precision."""
    sys.path.insert(0, str(ROOT))
    from tests.conftest import golden_folders
    from tests.network import test_golden

    files = {
        path.name: path
        for folder in golden_folders()
        for path in folder.glob(test_golden.WITH_GRADIENTS)
    }
    figures = Figures()
    for name, path in sorted(files.items()):
        with everything_on(device):
            tensors, net = test_golden.read(path)
            tensors = {key: tensor.to(device) for key, tensor in tensors.items()}
            net = net.to(device)
            outputs = net(tensors["input"])
            if "beit" not in name:  # whose file has gradients through a wrong batch norm
                test_golden.objective(tensors, outputs, {}).backward()
                given = test_golden.under("grad.", tensors)
                given.pop("input", None)  # the larger files have the image's, too
                given = test_golden.convert_official(given)
                parameters = dict(net.named_parameters())
                error = max(
                    relative(parameters[key].grad, grad, largest=True)
                    for key, grad in given.items()
                    if key in parameters
                )
                figures.targets.append(
                    Target(f"{name}: gradients in float32", error, test_golden.GRADIENT_RTOL)
                )
            row: dict[str, Any] = {"network": name}
            for dtype in (None, torch.bfloat16, torch.float16):
                with torch.no_grad(), torch.autocast(device, dtype, enabled=dtype is not None):
                    found = net(tensors["input"])
                row[str(dtype or torch.float32).removeprefix("torch.")] = max(
                    relative(found[ours], tensors[f"out.{theirs}"])
                    for ours, theirs in test_golden.OUTPUTS.items()
                    if f"out.{theirs}" in tensors
                )
            figures.rows.append(row)
    for row in figures.rows:
        figures.targets += [
            Target(f"{row['network']}: outputs in {dtype}", row[dtype], limit)
            for dtype, limit in (("float32", 1e-4), ("bfloat16", 5e-2), ("float16", 1e-2))
        ]
    return figures


def relative(found: Tensor, expected: Tensor, largest: bool = False) -> float:
    """The error's norm in units of the expected one's; with `largest`, of absolute maxima."""
    error, expected = found.double() - expected.double(), expected.double()
    if largest:
        return (error.abs().max() / expected.abs().max().clamp(min=1e-12)).item()
    return (error.norm() / expected.norm()).item()


# ------------------------------------------------------------------------------------------------
# Fast: the operators

# What an H100 took for the decoder's case at batch 4, milliseconds of kernels, forward and backward: the published
# row of msda-triton.
PUBLISHED = {"comer_d2": (0.012, 0.092), "comer_d2 bf16": (0.008, 0.056)}


def operator(device: str) -> Figures:
    """Deformable attention: compared with float64, then timed against every other implementation."""
    small = device != "cuda"
    names = ["grid_sample", "comer_d2", "comer_d2 bf16", "fused", "fused bf16", "deterministic"]
    if not small:
        names.append("classical")
        try:
            op.classical()
        except (RuntimeError, OSError) as error:
            names.remove("classical")
            print(f"the classical kernels were not built: {str(error).splitlines()[0]}")
        names += op.names_of_deformops()
    cases = (
        [("Decoder-300", 1)] if small else [("S-1024", 2), ("L-1024", 2), ("Mask2Former-1024", 2)]
    )
    figures = Figures()
    for case, batch in cases + ([] if small else [("Decoder-300", 4)]):
        built = op.implementations(case, batch, 2.0, device, names)
        built = op.without_wrong_ones(built, case, batch, 2.0, device)
        forward, both = (
            rounds.medians(op.measure(built, direction, 1 if small else 3, device))
            for direction in ("forward", "forward + backward")
        )
        for name in built:
            figures.rows.append(
                {
                    "case": case,
                    "batch": batch,
                    "implementation": name,
                    "forward, ms": forward[name],
                    "forward + backward, ms": both[name],
                }
            )
        if not small:
            figures.targets += targets_of_operator(case, forward, both)
    return figures


def targets_of_operator(
    case: str, forward: dict[str, float], both: dict[str, float]
) -> list[Target]:
    """Ratios of one case, from milliseconds by implementation."""
    backward = {name: both[name] - forward[name] for name in both}

    def ratio(times: dict[str, float], name: str, other: str) -> float:
        return times[name] / times[other]

    found = [
        ("bf16, forward + backward, to float32", ratio(both, "comer_d2 bf16", "comer_d2"), 0.9),
        ("fused bf16 forward to plain bf16", ratio(forward, "fused bf16", "comer_d2 bf16"), 1.0),
        ("deterministic backward to the fast one", ratio(backward, "deterministic", "comer_d2"), 3),
    ]
    for ours, theirs in (
        ("comer_d2", ("deformops", "deformops cuda")),
        ("comer_d2 bf16", ("deformops bf16",)),
    ):
        for what, times in (("forward", forward), ("forward + backward", both)):
            rivals = [times[name] for name in theirs if name in times]
            if rivals:
                found.append((f"{ours} {what} to deformops", times[ours] / min(rivals), 1.0))
    if case == "Decoder-300" and "H100" in torch.cuda.get_device_name():
        for name, limits in PUBLISHED.items():
            for what, times, limit in zip(("forward", "backward"), (forward, backward), limits):
                found.append((f"{name} {what}, ms", times[name], limit))
    return [Target(f"{case}: {name}", value, limit) for name, value, limit in found]


def token_convolution(device: str) -> Figures:
    """The token convolution: compared with float64, then timed against conv2d by level."""
    import token_conv

    small = device != "cuda"
    cases = ["ConvFFN T"] if small else ["MRFP S", "MRFP L", "ConvFFN S", "ConvFFN L"]
    figures = Figures()
    for case in cases:
        for dtype in (torch.float32, torch.bfloat16):
            for sides in [(64, 96)] if small else [(1024, 1024), (800, 1088)]:
                built = token_conv.implementations(case, sides, 1 if small else 2, device, dtype)
                row: dict[str, Any] = {
                    "case": f"{case}, {sides[0]} x {sides[1]}",
                    "dtype": str(dtype).removeprefix("torch."),
                }
                for direction in ("forward", "forward + backward"):
                    times = op.measure(built, direction, 1 if small else 3, device)
                    medians = rounds.medians(times)
                    for name, milliseconds in medians.items():
                        row[f"{name}, {direction}, ms"] = milliseconds
                    if not small:
                        ratio = medians["comer_d2"] / medians["conv2d"]
                        name = f"{row['case']}, {row['dtype']}, {direction} to conv2d"
                        figures.targets.append(Target(name, ratio, 1.0))
                figures.rows.append(row)
    return figures


# ------------------------------------------------------------------------------------------------
# Fast: the network

# eager and compiled, in units of timm's plain ViT's step
STEP_TARGETS = {"S": (2.5, 1.9), "L": (1.9, 1.5)}


def size_on(device: str, size: str) -> str:
    """The size on a GPU; a tiny one on the CPU."""
    return size if device == "cuda" else "tiny"


def network(size: str, device: str, **arguments: Any) -> nn.Module:
    """ViT-CoMer of a size."""
    return traffic.comer(size_on(device, size), **arguments).to(device).train()


def plain_vit(size: str, device: str) -> nn.Module:
    """timm's plain ViT of a size."""
    return traffic.plain_vit(size_on(device, size)).to(device).train()


def step(net: nn.Module, image: Tensor, dtype: torch.dtype = torch.bfloat16) -> None:
    """Forward and backward in autocast; the loss costs nothing."""
    net.zero_grad()
    with torch.autocast(image.device.type, dtype):
        outputs = net(image)
    outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def batch(device: str, side: int = 1024) -> Tensor:
    """The images of a step."""
    return torch.randn(*((2, 3, side, side) if device == "cuda" else (1, 3, 64, 64)), device=device)


def new_sizes(device: str) -> Figures:
    """What the first step at a new image size costs more than the next ones, with CoMer-S in float16."""
    small = device != "cuda"
    net = network("S", device)
    first_sizes = [(64, 64)] if small else [(800, 1088), (832, 1024)]
    sizes = [(64, 96), (96, 96)] if small else [(704, 1024), (736, 992), (768, 1024), (896, 960)]
    timed = functools.partial(op.timed, device=device)

    def call(size: tuple[int, int]) -> Callable[[], None]:
        image = torch.randn(1 if small else 2, 3, *size, device=device)
        return lambda: step(net, image, torch.bfloat16 if small else torch.float16)

    for size in first_sizes:  # what the first steps of a process cost is no size's fault
        for _ in range(3):
            call(size)()
    figures = Figures()
    for number, size in enumerate(sizes):
        warm = number % 2 == 1
        if warm:
            run_dense_convolutions(net, size, device)
        run = call(size)
        first, *again = (timed(run) for _ in range(6))
        next_ones = statistics.median(again)
        figures.rows.append(
            {
                "size": f"{size[0]} x {size[1]}",
                "dense convolutions": "warm" if warm else "new",
                "first step, ms": first,
                "next steps, ms": next_ones,
            }
        )
        if small:
            continue
        name = f"first step at {size[0]} x {size[1]}"
        if warm:
            figures.targets.append(
                Target(f"{name}, dense convolutions warm, to the next", first / next_ones, 1.3)
            )
        else:
            figures.targets.append(
                Target(f"{name}, seconds more than the next", (first - next_ones) / 1e3, 0.3)
            )
    return figures


def run_dense_convolutions(net: nn.Module, size: tuple[int, int], device: str) -> None:
    """Runs every dense convolution of a network alone, as a step at an image size would."""
    seen: dict[str, Tensor] = {}
    abstract = copy.deepcopy(net).to("meta")
    for name, module in abstract.named_modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) and module.groups == 1:
            module.register_forward_pre_hook(
                lambda module, inputs, name=name: seen.update({name: inputs[0]})
            )
    with torch.no_grad():
        abstract(torch.empty(1 if device == "cpu" else 2, 3, *size, device="meta"))
    modules = dict(net.named_modules())
    assert seen
    for name, like in seen.items():
        given = torch.empty_strided(like.shape, like.stride(), device=device).zero_()
        with torch.autocast(device, torch.bfloat16 if device == "cpu" else torch.float16):
            output = modules[name](given.requires_grad_(name != "vit.patch_embed.proj"))
        output.sum().backward()


def compare_steps(
    device: str, size: str, variants: dict[str, nn.Module]
) -> tuple[dict[str, list[float]], list[dict[str, Any]]]:
    """Times a step of each network, in turns.

    Returns:
        Milliseconds as the program sees them, and a row for each network, with what the GPU worked.
    """
    image = batch(device)
    calls = {name: functools.partial(step, net, image) for name, net in variants.items()}
    for call in calls.values():
        for _ in range(1 if device == "cpu" else 4):
            call()
    times = rounds.take_turns(calls, 1 if device == "cpu" else 15, device)
    rows = []
    for name, call in calls.items():
        row: dict[str, Any] = {"network": f"{name}, {size_on(device, size)}"}
        row["step, ms"] = statistics.median(times[name])
        if device == "cuda":
            row["of it the GPU works, ms"] = op.gpu_milliseconds(call, 2)
        rows.append(row)
    return times, rows


def eager_steps(device: str) -> Figures:
    """Forward and backward of the backbone in bfloat16, against timm's plain ViT of the size."""
    figures = Figures()
    for size, (most, _) in STEP_TARGETS.items():
        times, rows = compare_steps(
            device, size, {"ViT-CoMer": network(size, device), "plain ViT": plain_vit(size, device)}
        )
        figures.rows += rows
        if device == "cuda":
            ratio = rounds.median_ratio(times["ViT-CoMer"], times["plain ViT"])
            figures.targets.append(Target(f"{size}, eager step to the plain ViT's", ratio, most))
    return figures


def compiled_steps(size: str, device: str) -> Figures:
    """The same with train.compile=blocks; timm's plain ViT both as it is and with its blocks compiled."""
    from comer_d2.network.compiled import compile_blocks

    options = {} if device == "cuda" else {"backend": "aot_eager"}  # no minutes of a C++ compiler
    net, plain, compiled = network(size, device), plain_vit(size, device), plain_vit(size, device)
    compile_blocks(net, **options)
    for block in compiled.blocks:
        block.compile(dynamic=True, **options)
    times, rows = compare_steps(
        device,
        size,
        {"ViT-CoMer, compiled": net, "plain ViT": plain, "plain ViT, compiled": compiled},
    )
    figures = Figures(rows)
    if device == "cuda":
        ratio = rounds.median_ratio(times["ViT-CoMer, compiled"], times["plain ViT"])
        figures.targets.append(
            Target(f"{size}, compiled step to the plain ViT's", ratio, STEP_TARGETS[size][1])
        )
    return figures


def memory(device: str) -> Figures:
    """Peak memory and time of a step by what is recomputed: nothing, part by part, stage by stage."""
    figures = Figures()
    kinds: dict[str, bool | str] = {
        "without checkpointing": False,
        "with checkpointing": True,
        "with checkpointing by stage": "stage",
    }
    for size, (kind, checkpointing) in itertools.product(STEP_TARGETS, kinds.items()):
        net = network(size, device, use_act_checkpoint=checkpointing)
        if device == "cuda":
            step(net, batch(device))
            torch.cuda.reset_peak_memory_stats()
        _, (row,) = compare_steps(device, size, {f"ViT-CoMer, {kind}": net})
        if device == "cuda":
            row["peak, GiB"] = torch.cuda.max_memory_allocated() / 2**30
        del net
        figures.rows.append(row)
    return figures


# ------------------------------------------------------------------------------------------------
# Fast: detectors


def detector(config: str, device: str) -> Figures:
    """Steps of a config's own training loop on generated images, and what they waited for data."""
    if find_missing("detectron2"):
        raise SkippedError("Detectron2 is not installed")
    import gpu_detectors

    return Figures([gpu_detectors.steps(config, device, 4 if device == "cpu" else 30)])


def find_missing(*names: str) -> list[str]:
    """Those of some modules that are not installed."""
    import importlib.util

    return [name for name in names if importlib.util.find_spec(name) is None]


@dataclass(frozen=True)
class Part:
    """What is run, and how many seconds it may take."""

    run: Callable[[str], Figures]
    seconds: int


CONFIGS = {
    "Mask R-CNN S, multi-scale": "configs/COCO/mask_rcnn_comer_s_3x.py",
    "Cascade Mask R-CNN L": "configs/COCO/cascade_mask_rcnn_comer_l.py",
    "Mask2Former S": "configs/COCO/instance/mask2former_comer_s.py",
}
PARTS = {
    "build": Part(build, 150),
    "tests of the operators": Part(tests_of_operators, 90),
    "tests of layers, network and heads": Part(tests_of_networks, 150),
    "golden networks": Part(golden, 60),
    "deformable attention": Part(operator, 90),
    "token convolution": Part(token_convolution, 60),
    "new image sizes": Part(new_sizes, 60),
    "eager steps": Part(eager_steps, 60),
    "compiled steps, S": Part(functools.partial(compiled_steps, "S"), 120),
    "compiled steps, L": Part(functools.partial(compiled_steps, "L"), 120),
    "memory": Part(memory, 60),
    "compute-sanitizer": Part(sanitizer, 120),
    **{name: Part(functools.partial(detector, config), 90) for name, config in CONFIGS.items()},
}
