"""Times multi-scale deformable attention against its `grid_sample` formulation.

    python benchmarks/op.py                       # the table, on this machine's CPU
    python benchmarks/op.py --device cuda --json benchmarks/results/op_cuda.json
    python benchmarks/op.py --cases T-512 --rounds 3 --malloc default

Implementations take turns within a round; the figures are medians over rounds, ratios are medians of
the rounds' ratios. On a GPU they are the GPU's own time, as its profiler tells it: what launching costs is left out,
for everyone, and calls rotate over copies of their inputs. On the CPU the script starts itself again with a malloc that gives no page back
to the kernel (glibc's MALLOC_* settings, named in the result): with the default one grid_sample's
large temporaries are page-faulted in anew at each call, which flatters every ratio.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
FAULT_FREE_MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(1 << 36)}

STRIDES = (8, 16, 32)


class Case(NamedTuple):
    """One attention: (H, W) of its levels, heads, channels of a head, and how many queries.

    Without a number of queries the tokens themselves are the queries, as in encoders and CTI modules.
    """

    shapes: tuple[tuple[int, int], ...]
    heads: int
    head_dim: int
    queries: int | None = None


def of_image(side: int, heads: int, head_dim: int) -> Case:
    """Three levels of a square image."""
    return Case(tuple((side // stride, side // stride) for stride in STRIDES), heads, head_dim)


CASES = {
    "T-512": of_image(512, 6, 32),
    "S-512": of_image(512, 6, 64),
    "B-512": of_image(512, 12, 32),
    "T-1024": of_image(1024, 6, 32),
    "S-1024": of_image(1024, 6, 64),
    "B-1024": of_image(1024, 12, 32),
    "L-1024": of_image(1024, 16, 32),
    "Mask2Former-512": of_image(512, 8, 32),
    "Mask2Former-1024": of_image(1024, 8, 32),
    # A detection transformer's decoder: 800 x 1333, strides 8 to 64.
    "Decoder-300": Case(((100, 167), (50, 84), (25, 42), (13, 21)), 8, 32, queries=300),
}
POINTS = 4
COPIES = 3  # of the inputs on a GPU, so that no call finds its own in the second-level cache
# The fastest other implementation; where it adds half types in the half type itself, it is named so.
DEFORMOPS = {
    "deformops": {"backend": "TRITON", "fp32acc": True},
    "deformops cuda": {"backend": "CUDA"},
    "deformops bf16": {"backend": "TRITON", "fp32acc": True},
    "deformops native bf16": {"backend": "TRITON", "fp32acc": False},
}

RIVALS = ("grid_sample", "classical", *DEFORMOPS)


def grid_sample_formulation(value, shapes, locations, weights):
    """The usual PyTorch formulation: one grid_sample a level, all samples stacked, one sum."""
    import torch
    import torch.nn.functional as F

    batch, _, heads, head_dim = value.shape
    queries, _, levels, points = weights.shape[1:]
    grids = 2 * locations - 1
    sampled = []
    for level, part in enumerate(value.split([h * w for h, w in shapes], dim=1)):
        image = part.flatten(2).transpose(1, 2).reshape(batch * heads, head_dim, *shapes[level])
        grid = grids[:, :, :, level].transpose(1, 2).flatten(0, 1)
        sampled.append(
            F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        )
    weights = weights.transpose(1, 2).reshape(batch * heads, 1, queries, levels * points)
    output = (torch.stack(sampled, dim=-2).flatten(-2) * weights).sum(-1)
    return output.view(batch, heads * head_dim, queries).transpose(1, 2).contiguous()


def make_inputs(case: str, batch: int, spread: float, device: str):
    """Offsets are normal with `spread` pixels of their level around the token, or a random place.

    An infinite spread draws the locations uniformly over the level, which no network does.
    """
    import torch

    shapes, heads, head_dim, queries = CASES[case]
    generator = torch.Generator().manual_seed(0)
    references = []
    for height, width in shapes:
        y, x = torch.meshgrid(
            (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width,
            indexing="ij",
        )  # fmt: skip
        references.append(torch.stack([x, y], -1).view(-1, 2))
    reference = torch.cat(references).view(1, -1, 1, 2)
    value = torch.randn(batch, reference.shape[1], heads, head_dim, generator=generator)
    if queries is not None:
        reference = torch.rand(1, queries, 1, 2, generator=generator)
    queries, levels = reference.shape[1], len(shapes)
    offsets = torch.randn(batch, queries, heads, levels, POINTS, 2, generator=generator)
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float32)
    sizes = sizes.view(1, 1, 1, levels, 1, 2)
    if math.isinf(spread):
        locations = torch.rand(offsets.shape, generator=generator)
        offsets = (locations - reference[:, :, None, :, None]) * sizes
    else:
        offsets = offsets * spread
    logits = torch.randn(batch, queries, heads, levels * POINTS, generator=generator)
    projected = torch.cat([offsets.flatten(2), logits.flatten(2)], dim=-1)
    return value.to(device), list(shapes), projected.to(device), reference.to(device)


@functools.cache
def classical():
    """The classical kernels, built here: they are no part of the library."""
    import torch
    from torch.utils.cpp_extension import load

    load(
        "comer_d2_classical",
        [str(ROOT / "benchmarks" / "classical_kernel.cu")],
        extra_include_paths=[str(ROOT / "csrc" / "cuda")],
        extra_cuda_cflags=["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DUSE_CUDA", "-std=c++20", "-O3"],
        is_python_module=False,
    )  # fmt: skip
    kernels = torch.ops.comer_d2_classical

    class Classical(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value, locations, weights, flat):
            ctx.save_for_backward(value, locations, weights)
            ctx.flat = flat
            return kernels.forward(value, flat, locations, weights)

        @staticmethod
        def backward(ctx, grad):
            value, locations, weights = ctx.saved_tensors
            return *kernels.backward(grad, value, ctx.flat, locations, weights), None

    return Classical.apply


def of_deformops(shapes, device: str, *, backend: str, **options):
    """deformops' function of (value, locations, weights), whose weights have the value's dtype."""
    import torch
    from deformops.registry import Backend, msda

    sizes = torch.tensor(shapes, device=device)
    starts = [0, *itertools.accumulate(height * width for height, width in shapes[:-1])]
    starts = torch.tensor(starts, device=device)
    chosen = Backend[backend]

    def call(value, locations, weights):
        return msda(value, sizes, starts, locations, weights, backend=chosen, **options)

    return call


def names_of_deformops() -> list[str]:
    """Its implementations that run here; why others do not is printed."""
    import importlib.util

    import torch

    if importlib.util.find_spec("deformops") is None:
        return []
    found = []
    for name in DEFORMOPS:
        try:
            forward, inputs = implementations("Decoder-300", 1, 2.0, "cuda", [name])[name]
            inputs = [tensor.requires_grad_() for tensor in inputs]
            torch.autograd.grad(forward(*inputs).sum(), inputs)
            torch.cuda.synchronize()
        except Exception as error:  # theirs: no kernel library, an architecture
            print(f"{name} does not run: {type(error).__name__}: {str(error).splitlines()[:1]}")
        else:
            found.append(name)
    return found


def implementations(case: str, batch: int, spread: float, device: str, names: list[str]):
    """name -> (forward, inputs with gradients)."""
    import torch

    from comer_d2 import ops
    from comer_d2.ops.ms_deform_attn_reference import locations_and_weights

    value, shapes, projected, reference = make_inputs(case, batch, spread, device)
    locations, weights = locations_and_weights(shapes, projected, reference, value.shape[2])
    half = value.bfloat16()
    flat = [size for shape in shapes for size in shape]

    def unfused(value, projected):
        return ops.ms_deform_attn(
            value, shapes, *locations_and_weights(shapes, projected, reference, value.shape[2])
        )

    def plain(value, locations, weights):
        return ops.ms_deform_attn(value, shapes, locations, weights)

    def fused(value, projected):
        return ops.ms_deform_attn_fused(value, shapes, projected, reference)

    def deterministic(value, locations, weights):
        return Deterministic.apply(value, flat, locations, weights)

    class Deterministic(torch.autograd.Function):
        @staticmethod
        def forward(ctx, value, flat, locations, weights):
            ctx.save_for_backward(value, locations, weights)
            return torch.ops.comer_d2.ms_deform_attn(value, flat, locations, weights)

        @staticmethod
        def backward(ctx, grad):
            value, locations, weights = ctx.saved_tensors
            grads = torch.ops.comer_d2.ms_deform_attn_backward(
                grad, value, flat, locations, weights, True
            )
            return grads[0], None, *grads[1:]

    apply = classical() if "classical" in names else None
    sampled = (value, locations, weights)
    known = {
        "grid_sample": (lambda v, loc, w: grid_sample_formulation(v, shapes, loc, w), sampled),
        "classical": (lambda v, loc, w: apply(v, loc, w, flat), sampled),
        "comer_d2": (plain, sampled),
        "comer_d2 bf16": (plain, (half, locations, weights)),
        "deterministic": (deterministic, sampled),
        "unfused": (unfused, (value, projected)),
        "fused": (fused, (value, projected)),
        "fused bf16": (fused, (half, projected.bfloat16())),
    }
    for name in set(names) & set(DEFORMOPS):
        given = (half, locations, weights.bfloat16()) if "bf16" in name else sampled
        known[name] = (of_deformops(shapes, device, **DEFORMOPS[name]), given)
    return {
        name: (known[name][0], [tensor.detach().clone() for tensor in known[name][1]])
        for name in names
    }


def without_wrong_ones(built: dict, case: str, batch: int, spread: float, device: str) -> dict:
    """What of `built` is the float64 reference, to its precision.

    Others' implementations that are not are named and left out; ours end the program.
    """
    import torch

    from comer_d2 import ops

    _, shapes, _, reference = make_inputs(case, batch, spread, device)

    def gradients(function, inputs):
        inputs = [tensor.detach().requires_grad_() for tensor in inputs]
        output = function(*inputs)
        generator = torch.Generator(device).manual_seed(1)
        grad = torch.randn(output.shape, generator=generator, device=device, dtype=torch.float64)
        return [output, *torch.autograd.grad(output, inputs, grad.to(output.dtype))]

    def exact(*inputs):
        if len(inputs) == 3:
            return ops.ms_deform_attn_reference(inputs[0], shapes, *inputs[1:])
        return ops.ms_deform_attn_fused_reference(inputs[0], shapes, inputs[1], reference.double())

    wanted, right = {}, dict(built)
    for name, (forward, inputs) in built.items():
        key = tuple(tensor.dtype for tensor in inputs)
        if key not in wanted:
            wanted[key] = gradients(exact, [tensor.double() for tensor in inputs])
        got = gradients(forward, inputs)
        # Locations are compared in the mean: where rounding moves a sample to the next pixel, its
        # gradient jumps.
        half = inputs[0].dtype == torch.bfloat16
        tolerances = (1e-2, 1e-2, 2e-2, 1e-2) if half else (1e-5, 1e-5, 2e-2, 1e-2)
        for what, a, b, most in zip(
            ("output", "value", "geometry", "weights"), got, wanted[key], tolerances
        ):
            error = ((a.double() - b).norm() / b.norm()).item()
            if not error < most:
                wrong = f"{name}, {case}: the {what}'s error is {error:.1e}, not below {most}"
                if name not in RIVALS:
                    raise SystemExit(wrong)
                print(f"left out: {wrong}")
                right.pop(name, None)
    return right


def timed(call: Callable[[], None], device: str) -> float:
    """Milliseconds of one call, as the program sees it."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start)


def gpu_milliseconds(call: Callable[[], object], calls: int = 2 * COPIES) -> float:
    """What the GPU itself works for one call: the sum of its kernels and copies.

    Raises:
        RuntimeError: the profiler saw nothing.
    """
    import torch
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        for _ in range(calls):
            call()
        torch.cuda.synchronize()
    work = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    if not work:
        raise RuntimeError("torch's profiler saw no kernel: is CUPTI missing?")
    return sum(event.time_range.elapsed_us() for event in work) / 1e3 / calls


def measure(built: dict, direction: str, rounds: int, device: str) -> dict[str, list[float]]:
    """Milliseconds of every round for each implementation."""
    import torch

    calls = {}
    for name, (forward, inputs) in built.items():
        backward = direction != "forward"
        copies = itertools.cycle(
            [[tensor.detach().clone().requires_grad_(backward) for tensor in inputs]
             for _ in range(COPIES if device == "cuda" else 1)]
        )  # fmt: skip
        if not backward:

            def call(forward=forward, copies=copies):
                with torch.no_grad():
                    forward(*next(copies))

        else:
            with torch.no_grad():
                grad = torch.randn_like(forward(*inputs))

            def call(forward=forward, copies=copies, grad=grad):
                inputs = next(copies)
                torch.autograd.grad(forward(*inputs), inputs, grad)

        calls[name] = call
    for call in calls.values():
        call(), call()
    times = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            if device == "cuda":
                times[name].append(gpu_milliseconds(call))
                continue
            # A short call is repeated for 50 ms, and its own median stands for the round.
            first = timed(call, device)
            repeats = min(49, int(50 / max(first, 1e-3)))
            times[name].append(
                statistics.median([first, *(timed(call, device) for _ in range(repeats))])
            )
    return times


def peak_memory(case: str, name: str) -> float:
    """MiB that one forward takes beyond its inputs and before it returns, in a fresh process."""
    script = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "benchmarks")!r}]
import torch, op
forward, inputs = op.implementations({case!r}, 1, 2.0, "cpu", [{name!r}])[{name!r}]
small, few = op.implementations("T-512", 1, 2.0, "cpu", [{name!r}])[{name!r}]
def status(key):
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024
with torch.no_grad():
    small(*few)
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
    forward(*inputs)
print(status("VmHWM") - before)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    run = [sys.executable, "-c", script]
    return float(
        subprocess.run(run, env=environment, capture_output=True, text=True).stdout or "nan"
    )


def restart_without_page_faults() -> None:
    """Starts this process again with a malloc that keeps its pages, unless it has that already."""
    if any(os.environ.get(key) != value for key, value in FAULT_FREE_MALLOC.items()):
        os.environ.setdefault("OMP_WAIT_POLICY", "passive")
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **FAULT_FREE_MALLOC})


def machine(device: str) -> dict[str, str]:
    """What the figures depend on."""
    import torch

    from comer_d2 import ops

    def read(path: str, key: str) -> str:
        lines = Path(path).read_text().splitlines() if Path(path).exists() else []
        return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "?")

    malloc = {k: os.environ[k] for k in FAULT_FREE_MALLOC if k in os.environ}
    preload = os.environ.get("LD_PRELOAD", "")
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else read("/proc/cpuinfo", "model name"),
        "threads": str(torch.get_num_threads()),
        "instruction set": str(ops.cpu_capability()),
        "allocator": preload or " ".join([platform.libc_ver()[0], *(f"{k}={v}" for k, v in malloc.items())]),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "unset"),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }  # fmt: skip


def require_compiled(device: str) -> None:
    """Ends the program where PyTorch's code would be measured in the operators' place."""
    from comer_d2 import ops

    status = ops.library_status()[device]
    if not status.startswith("compiled"):
        raise SystemExit(f"there is nothing to measure: {status}")


def write(path: Path | None, result: dict) -> None:
    """Writes the figures, if a path is given."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    os.replace(temporary, path)


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(math.log(value) for value in values) / len(values))


def run(options: argparse.Namespace) -> dict:
    import torch

    torch.set_num_threads(options.threads)
    require_compiled(options.device)
    names = ["grid_sample", "comer_d2", "comer_d2 bf16", "unfused", "fused", "fused bf16"]
    if options.device == "cuda":  # on the CPU every backward is deterministic
        names += ["deterministic"]
        try:
            classical()
            names += ["classical"]
        except (RuntimeError, OSError) as error:  # a toolkit without everything that linking needs
            print(f"the classical kernels were not built: {str(error).splitlines()[0]}")
        names += names_of_deformops()
    result = {
        "command": " ".join(["python", *sys.argv]),
        "machine": machine(options.device),
        "rows": [],
    }
    compared = {
        "vs grid_sample": ("grid_sample", "comer_d2"),
        "bf16/fp32": ("comer_d2 bf16", "comer_d2"),
        "fused/unfused": ("fused", "unfused"),
        "fused bf16/fp32": ("fused bf16", "fused"),
        "vs classical": ("classical", "comer_d2"),
        "deterministic": ("deterministic", "comer_d2"),
        "vs deformops": ("deformops", "comer_d2"),
    }
    compared = {k: pair for k, pair in compared.items() if set(pair) <= set(names)}
    right: dict[str, list[str]] = {}
    for direction in ("forward", "forward + backward"):
        print(f"\n{direction}, milliseconds" + " " * 10
              + "".join(f"{name:>16}" for name in [*names, *compared]))  # fmt: skip
        for case in options.cases:
            setting = (options.batch, options.spread, options.device)
            built = implementations(case, *setting, right.get(case, names))
            if case not in right:  # what is timed is first compared
                built = without_wrong_ones(built, case, *setting)
                right[case] = list(built)
            times = measure(built, direction, options.rounds, options.device)
            row = {
                "case": case,
                "direction": direction,
                "milliseconds": {name: statistics.median(ms) for name, ms in times.items()},
                **{
                    title: statistics.median([x / y for x, y in zip(times[a], times[b])])
                    for title, (a, b) in compared.items()
                    if a in times and b in times
                },
            }
            result["rows"].append(row)
            figures = [row["milliseconds"].get(name) for name in names]
            figures += [row.get(title) for title in compared]
            print(
                f"{case:<30}" + "".join(f"{x:16.2f}" if x else f"{'-':>16}" for x in figures),
                flush=True,
            )
        ratios = [
            row["vs grid_sample"]
            for row in result["rows"]
            if row["direction"] == direction and "vs grid_sample" in row
        ]
        result[direction] = {"geometric mean": geometric_mean(ratios), "least": min(ratios)}
        print(f"grid_sample takes {geometric_mean(ratios):.1f} times as long (geometric mean), "
              f"least {min(ratios):.1f}")  # fmt: skip
    if options.device == "cpu" and options.memory:
        case = options.cases[-1] if "S-1024" not in options.cases else "S-1024"
        peak = {name: peak_memory(case, name) for name in ("grid_sample", "comer_d2")}
        result["peak MiB, forward"] = {"case": case, **peak}
        print(f"\npeak extra memory of a forward, {case}: "
              + ", ".join(f"{name} {value:.0f} MiB" for name, value in peak.items()))  # fmt: skip
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument(
        "--spread", type=float, default=2.0, help="of offsets, pixels; inf: uniform"
    )
    parser.add_argument("--malloc", choices=["fault-free", "default"], default="fault-free")
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--json", type=Path, help="where to write the figures as well")
    options = parser.parse_args()
    if options.device == "cpu" and options.malloc == "fault-free":
        restart_without_page_faults()
    print("\n".join(f"{key}: {value}" for key, value in machine(options.device).items()))
    write(options.json, run(options))


if __name__ == "__main__":
    main()
