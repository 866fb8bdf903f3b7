"""Times the whole backbone against the same network with deformable attention in plain PyTorch.

    python benchmarks/backbone.py
    python benchmarks/backbone.py --json benchmarks/results/backbone_cpu.json

The rival is the structure of the authors' code on a CPU: the same layers and weights, but the
attention through `grid_sample`, and PyTorch's own linear layers. Between the two, "operator only"
is ours with PyTorch's linear layers. They take turns within a round; figures are medians over
rounds, ratios are medians of the rounds' ratios.

Then ViT-CoMer-S against timm's plain ViT-S, in float32, under bfloat16 autocast and, in inference, with
the weights kept in bfloat16; and against its own ViT alone, whose linear layers and windows are the same: on
some processors PyTorch's own linear layers, which timm's has, take twice as long in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import rounds

SIZES = {
    "T": {"embed_dim": 192, "num_heads": 3},
    "S": {"embed_dim": 384, "num_heads": 6},
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


VARIANTS = {
    "comer_d2": nullcontext,
    "operator only": lambda: rounds.plain_layers(attention=False),
    "grid_sample": rounds.plain_layers,
}


def backward(outputs: list) -> None:
    """Of gradients in the outputs' own type and layout: what makes them is not to count."""
    import torch

    torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])


def measure(size: str, image_size: tuple[int, int], direction: str, count: int) -> dict:
    """Milliseconds of both, and the median of their ratios."""
    import torch

    from comer_d2.network import ViT, ViTCoMerNet

    torch.manual_seed(0)
    net = ViTCoMerNet(ViT(**SIZES[size]), deform_num_heads=6, deform_ratio=1.0)
    image = torch.randn(1, 3, *image_size)

    def call() -> None:
        if direction == "forward":
            with torch.no_grad():
                net.eval()(image)
        else:
            net.train().zero_grad()
            backward(list(net(image).values()))

    def within(context: Callable) -> Callable[[], None]:
        def run() -> None:
            with context():
                call()

        return run

    calls = {name: within(context) for name, context in VARIANTS.items()}
    times = rounds.take_turns(calls, count, "cpu")
    rival = times["grid_sample"]
    return {
        "size": size,
        "image": list(image_size),
        "direction": direction,
        "milliseconds": rounds.medians(times),
        "fastest milliseconds": {name: min(values) for name, values in times.items()},
        "grid_sample / comer_d2": rounds.median_ratio(rival, times["comer_d2"]),
        "grid_sample / operator only": rounds.median_ratio(rival, times["operator only"]),
    }


PLAIN_CASES = [
    ("float32", "forward"),
    ("bfloat16 autocast", "forward"),
    ("bfloat16 weights", "forward"),
    ("float32", "forward + backward"),
    ("bfloat16 autocast", "forward + backward"),
]


OURS, RIVALS = "ViT-CoMer-S", ("its ViT alone", "timm's ViT-S")


def measure_plain(kind: str, direction: str, count: int) -> dict:
    """Milliseconds of ViT-CoMer-S and of plain ViTs at 512 x 512, and the medians of their ratios."""
    import torch
    from timm.models.vision_transformer import VisionTransformer

    from comer_d2.layers.narrow import narrow_weights
    from comer_d2.network import ViT, ViTCoMerNet

    torch.manual_seed(0)
    nets = {
        OURS: ViTCoMerNet(ViT(**SIZES["S"]), deform_num_heads=6, deform_ratio=1.0),
        RIVALS[0]: ViT(**SIZES["S"]),
        RIVALS[1]: VisionTransformer(
            **SIZES["S"], depth=12, num_classes=0, global_pool="", dynamic_img_size=True
        ),
    }
    image = torch.randn(1, 3, 512, 512)
    if kind == "bfloat16 weights":
        for net in nets.values():
            narrow_weights(net, torch.bfloat16)

    def step(net: torch.nn.Module) -> Callable[[], None]:
        def outputs() -> list[torch.Tensor]:
            with torch.autocast("cpu", torch.bfloat16, enabled=kind != "float32"):
                found = net(image)
            return list(found.values()) if isinstance(found, dict) else [found]

        def run() -> None:
            if direction == "forward":
                with torch.no_grad():
                    net.eval()
                    outputs()
            else:
                net.train().zero_grad()
                backward(outputs())

        return run

    times = rounds.take_turns({name: step(net) for name, net in nets.items()}, count, "cpu")
    return {
        "size": "S",
        "image": [512, 512],
        "direction": direction,
        "kind": kind,
        "milliseconds": rounds.medians(times),
        **{f"{OURS} / {rival}": rounds.median_ratio(times[OURS], times[rival]) for rival in RIVALS},
    }


def compare_operators(count: int) -> list[dict]:
    """The rows of `CASES`, printed as they come."""
    rows = []
    print(" " * 42 + "".join(f"{name:>16}" for name in VARIANTS) + "   ratio, of the operator only")
    for size, (height, width), direction in CASES:
        row = measure(size, (height, width), direction, count)
        rows.append(row)
        print(
            f"ViT-CoMer-{size} {f'{height}x{width}':10} {direction:20}"
            + "".join(f"{row['milliseconds'][name]:13.0f} ms" for name in VARIANTS)
            + f"{row['grid_sample / comer_d2']:8.2f}{row['grid_sample / operator only']:8.2f}",
            flush=True,
        )
    return rows


def compare_with_plain(count: int) -> list[dict]:
    """The rows of `PLAIN_CASES`, printed as they come."""
    rows = []
    print(" " * 42 + "".join(f"{name:>16}" for name in (OURS, *RIVALS)) + "   ratios")
    for kind, direction in PLAIN_CASES:
        row = measure_plain(kind, direction, count)
        rows.append(row)
        print(
            f"{kind:20} {direction:21}"
            + "".join(f"{value:13.0f} ms" for value in row["milliseconds"].values())
            + "".join(f"{row[f'{OURS} / {rival}']:8.2f}" for rival in RIVALS),
            flush=True,
        )
    return rows


PARTS = {"operators": compare_operators, "plain": compare_with_plain}


def main() -> None:
    parser = rounds.parser(__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    options = parser.parse_args()
    machine = rounds.start(options, "cpu")
    rows = [row for part in options.parts for row in PARTS[part](options.rounds)]
    rounds.write(options, machine, rows)


if __name__ == "__main__":
    main()
