"""Times the token convolution against conv2d, level by level, as MRFP and ConvFFN would call it.

    python benchmarks/token_conv.py --json benchmarks/results/token_conv_cpu.json
    python benchmarks/token_conv.py --device cuda --batch 2

The rival splits the tokens into channels-last maps, convolves each level (MRFP: each half of its channels
with its own kernel) and joins the results. Both take turns within a round; figures are medians over
rounds, ratios are medians of the rounds' ratios. Memory as in op.py.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import op

# hidden channels, kernels of the channel groups, one set of weights a level; at 0.5 and 0.25 of the width
CASES = {
    "MRFP T": (96, (3, 5), True),
    "MRFP S": (192, (3, 5), True),
    "MRFP L": (512, (3, 5), True),
    "ConvFFN T": (48, (3,), False),
    "ConvFFN S": (96, (3,), False),
    "ConvFFN L": (256, (3,), False),
}
OF_A_CPU = [case for case in CASES if not case.endswith("L")]
SIDES = [(512, 512), (800, 1088)]


def implementations(case: str, sides: tuple[int, int], batch: int, device: str, dtype) -> dict:
    """name -> (forward, inputs with gradients)."""
    import torch
    import torch.nn.functional as F

    from comer_d2.ops import token_depthwise_conv

    channels, kernels, by_level = CASES[case]
    shapes = [(sides[0] // stride, sides[1] // stride) for stride in (8, 16, 32)]
    sizes, share, groups = [h * w for h, w in shapes], channels // len(kernels), len(kernels)
    generator = torch.Generator().manual_seed(0)

    def draw(*size):
        return torch.randn(*size, generator=generator).to(device, dtype)

    sets = len(shapes) if by_level else 1
    weights = [draw(share, 1, k, k) for _ in range(sets) for k in kernels]
    biases = [draw(share) for _ in weights]

    def rows(flat):
        return [flat[i : i + groups] for i in range(0, len(flat), groups)]

    def ours(tokens, *parameters):
        weight, bias = parameters[: len(weights)], parameters[len(weights) :]
        return token_depthwise_conv(tokens, shapes, rows(weight), rows(bias))

    def conv2d(tokens, *parameters):
        weight, bias = rows(parameters[: len(weights)]), rows(parameters[len(weights) :])
        levels = []
        for level, (part, shape) in enumerate(zip(tokens.split(sizes, dim=1), shapes)):
            image = part.unflatten(1, shape).permute(0, 3, 1, 2)
            number = level if by_level else 0
            parts = [
                F.conv2d(piece, w, b, padding=w.shape[-1] // 2, groups=share)
                for piece, w, b in zip(image.chunk(groups, 1), weight[number], bias[number])
            ]
            image = torch.cat(parts, dim=1) if groups > 1 else parts[0]
            levels.append(image.permute(0, 2, 3, 1).flatten(1, 2))
        return torch.cat(levels, dim=1)

    inputs = [draw(batch, sum(sizes), channels), *weights, *biases]
    # What is timed is first compared with float64, gradients too.
    grad = draw(*inputs[0].shape)
    wanted = with_gradients(conv2d, [tensor.double() for tensor in inputs], grad.double())
    for found, expected in zip(with_gradients(ours, inputs, grad), wanted):
        error = ((found.double() - expected).norm() / expected.norm()).item()
        if not error < (1e-2 if dtype == torch.bfloat16 else 1e-5):
            raise SystemExit(f"{case}: the error is {error:.1e}")
    return {
        name: (call, [tensor.detach().clone() for tensor in inputs])
        for name, call in (("conv2d", conv2d), ("comer_d2", ours))
    }


def with_gradients(function, inputs: list, grad) -> list:
    """Output and the gradients of all inputs."""
    import torch

    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, grad)]


def run(options: argparse.Namespace) -> dict:
    import torch

    torch.set_num_threads(options.threads)
    op.require_compiled(options.device)
    result = {"machine": op.machine(options.device), "rows": []}
    for direction in ("forward", "forward + backward"):
        for dtype in (torch.float32, torch.bfloat16):
            print(f"\n{direction}, {dtype}, milliseconds      conv2d    comer_d2   ratio")
            for case in CASES if options.device == "cuda" else OF_A_CPU:
                for sides in SIDES:
                    built = implementations(case, sides, options.batch, options.device, dtype)
                    times = op.measure(built, direction, options.rounds, options.device)
                    ratios = [a / b for a, b in zip(times["conv2d"], times["comer_d2"])]
                    row = {
                        "case": f"{case}, {sides[0]} x {sides[1]}",
                        "direction": direction,
                        "dtype": str(dtype),
                        "milliseconds": {k: statistics.median(v) for k, v in times.items()},
                        "conv2d / comer_d2": statistics.median(ratios),
                    }
                    result["rows"].append(row)
                    figures = "".join(f"{ms:12.2f}" for ms in row["milliseconds"].values())
                    print(
                        f"{row['case']:<40}{figures}{statistics.median(ratios):8.1f}x", flush=True
                    )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=op.os.cpu_count())
    parser.add_argument("--json", type=Path, help="where to write the figures as well")
    options = parser.parse_args()
    if options.device == "cpu":
        op.restart_without_page_faults()
    op.write(options.json, run(options))


if __name__ == "__main__":
    main()
