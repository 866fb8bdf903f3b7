"""Times exported files against the model in PyTorch, on a CPU.

    python benchmarks/exported.py COCO/mask_rcnn_comer_s_1x ADE20K/semantic/upernet_comer_s --folder files --export-only
    python benchmarks/exported.py COCO/mask_rcnn_comer_s_1x ADE20K/semantic/upernet_comer_s --folder files

Models of random weights, at one size, batch 1. Each file is compared with its model when it is written.
The rivals take turns within a round: PyTorch, which runs the same steps with this project's compiled
operators, and each file in its runtime. Figures are medians over rounds, ratios are medians of the
rounds' ratios.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import rounds

CONFIGS = Path(__file__).parents[1] / "configs"
ENDINGS = {"onnx": ".onnx", "torch-export": ".pt2", "aoti": ".pt2"}


def main() -> None:
    """Run from the command line."""
    parser = rounds.parser(__doc__.splitlines()[0])
    parser.add_argument("configs", nargs="+", help="below configs/, without .py")
    parser.add_argument(
        "--folder", type=Path, required=True, help="of the files; what is there is used"
    )
    parser.add_argument("--size", type=int, default=512, help="side of the image (%(default)s)")
    parser.add_argument("--formats", nargs="+", default=list(ENDINGS), choices=ENDINGS)
    parser.add_argument("--export-only", action="store_true", help="write the files, time nothing")
    options = parser.parse_args()
    machine = rounds.start(options, "cpu")
    rows = [row for config in options.configs for row in measure(options, config)]
    rounds.write(options, machine, rows)


def measure(options: Any, config: str) -> list[dict[str, Any]]:
    """One config: its rows, printed."""
    import torch
    from detectron2.config import LazyConfig, instantiate

    from comer_d2.d2.export.program import export_program
    from comer_d2.d2.export.traceable import traceable

    cfg = LazyConfig.load(str(CONFIGS / f"{config}.py"))
    cfg.model.pop("views", None)
    if "square_pad" in cfg.model.backbone:
        cfg.model.backbone.square_pad = 0  # the image is the square
    if "dataset" in cfg:
        cfg.dataset.num_classes = 10
    torch.manual_seed(0)
    model = instantiate(cfg.model).eval()
    image = torch.randint(0, 256, (3, options.size, options.size)).float()
    files = {}
    for name in options.formats:
        files[name] = options.folder / f"{Path(config).name}-{options.size}-{name}{ENDINGS[name]}"
        if not files[name].exists():
            written = export_program(model, files[name], format=name, images=[image], dynamic=False)
            print("\n".join(written.lines))
    if options.export_only:
        return []
    module, batch = traceable(model), image[None]

    @torch.no_grad()
    def eager() -> Any:
        return module(batch)

    calls = {"PyTorch": eager}
    calls |= {name: runner(name, path, batch, options.threads) for name, path in files.items()}
    times = rounds.take_turns(calls, options.rounds, "cpu")
    rows = []
    for name, median in rounds.medians(times).items():
        row = {"config": config, "size": options.size, "runtime": name, "ms": median}
        row["ratio"] = rounds.median_ratio(times[name], times["PyTorch"])
        if name in files:
            row["MiB"] = files[name].stat().st_size / 2**20
        rows.append(row)
        print(", ".join(f"{k} {v:.3g}" if isinstance(v, float) else f"{v}" for k, v in row.items()))
    return rows


def runner(name: str, path: Path, batch: Any, threads: int) -> Callable[[], Any]:
    """What runs a file once."""
    import torch

    if name == "onnx":
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        return lambda: session.run(None, {"images": batch.numpy()})
    if name == "aoti":
        compiled = torch._inductor.aoti_load_package(str(path))
        return lambda: compiled(batch)
    program = torch.export.load(path).module()

    @torch.no_grad()
    def run() -> Any:
        return program(batch)

    return run


if __name__ == "__main__":
    main()
