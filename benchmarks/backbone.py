"""Times the whole backbone against the same network with deformable attention in plain PyTorch.

    python benchmarks/backbone.py
    python benchmarks/backbone.py --json benchmarks/results/backbone_cpu.json

The rival is the structure of the authors' code on a CPU: the same layers and weights, but the
attention through `grid_sample`, and PyTorch's own linear layers. Between the two, "operator only"
is ours with PyTorch's linear layers. They take turns within a round; figures are medians over
rounds, ratios are medians of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import op

SIZES = {
    "T": {"embed_dim": 192, "num_heads": 3, "deform_num_heads": 6, "deform_ratio": 1.0},
    "S": {"embed_dim": 384, "num_heads": 6, "deform_num_heads": 6, "deform_ratio": 1.0},
}
# size, (height, width), what is timed
CASES = [
    ("T", (512, 512), "forward"),
    ("S", (512, 512), "forward"),
    ("T", (800, 1088), "forward"),
    ("S", (800, 1088), "forward"),
    ("T", (512, 512), "forward + backward"),
    ("S", (512, 512), "forward + backward"),
]


@contextmanager
def plain(attention: bool) -> Iterator[None]:
    """PyTorch's own linear layers and, with `attention`, `grid_sample` while the context is open."""
    from comer_d2.network import deform_attn, linear
    from comer_d2.ops import ms_deform_attn_fused_reference

    compiled, chosen = deform_attn.ms_deform_attn_fused, linear.by_convolution
    linear.by_convolution = lambda x: False
    if attention:
        deform_attn.ms_deform_attn_fused = ms_deform_attn_fused_reference
    try:
        yield
    finally:
        deform_attn.ms_deform_attn_fused, linear.by_convolution = compiled, chosen


VARIANTS = {
    "comer_d2": nullcontext,
    "operator only": lambda: plain(attention=False),
    "grid_sample": lambda: plain(attention=True),
}


def measure(size: str, image_size: tuple[int, int], direction: str, rounds: int) -> dict:
    """Milliseconds of both, and the median of their ratios."""
    import torch

    from comer_d2.network import ViTCoMerNet

    torch.manual_seed(0)
    net = ViTCoMerNet(**SIZES[size])
    image = torch.randn(1, 3, *image_size)

    def call() -> None:
        if direction == "forward":
            with torch.no_grad():
                net.eval()(image)
        else:
            net.train().zero_grad()
            sum(output.sum() for output in net(image).values()).backward()

    times: dict[str, list[float]] = {name: [] for name in VARIANTS}
    for round_number in range(rounds + 1):
        for name, context in VARIANTS.items():
            with context():
                elapsed = op.timed(call, "cpu")
            if round_number:  # the first round warms up
                times[name].append(elapsed)
    rival = times["grid_sample"]
    return {
        "size": size,
        "image": list(image_size),
        "direction": direction,
        "milliseconds": {name: statistics.median(values) for name, values in times.items()},
        "fastest milliseconds": {name: min(values) for name, values in times.items()},
        "grid_sample / comer_d2": median_ratio(rival, times["comer_d2"]),
        "grid_sample / operator only": median_ratio(rival, times["operator only"]),
    }


def median_ratio(a: list[float], b: list[float]) -> float:
    return statistics.median([x / y for x, y in zip(a, b, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (%(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--malloc", choices=["fault-free", "default"], default="fault-free")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.malloc == "fault-free":
        op.restart_without_page_faults()
    import torch

    torch.set_num_threads(options.threads)
    machine = op.machine("cpu")
    print("\n".join(f"{key}: {value}" for key, value in machine.items()))
    rows = []
    print(" " * 42 + "".join(f"{name:>16}" for name in VARIANTS) + "   ratio, of the operator only")
    for size, (height, width), direction in CASES:
        row = measure(size, (height, width), direction, options.rounds)
        rows.append(row)
        print(
            f"ViT-CoMer-{size} {f'{height}x{width}':10} {direction:20}"
            + "".join(f"{row['milliseconds'][name]:13.0f} ms" for name in VARIANTS)
            + f"{row['grid_sample / comer_d2']:8.2f}{row['grid_sample / operator only']:8.2f}",
            flush=True,
        )
    if options.json:
        result = {"command": " ".join(["python", *sys.argv]), "machine": machine, "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
