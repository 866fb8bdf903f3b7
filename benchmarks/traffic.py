"""Counts the kernels that a training step would launch and the bytes that they would move.

    python benchmarks/traffic.py                        # S and L at 1024, bfloat16 autocast
    python benchmarks/traffic.py --size T --image 512 --dtype float32
    python benchmarks/traffic.py --json benchmarks/results/traffic.json

Nothing is computed and no GPU is needed: shapes go through the network and its backward, and every
operator that would read or write memory is counted with the sizes of its inputs and outputs. It
says what eager PyTorch moves, not what a cache saves. timm's plain ViT of the same size is counted
beside it, and the ViT-CoMer with its ViT frozen: all of it, and only read (no CTI to V, weights in bfloat16).

The memory of a step is that of weights, gradients and AdamW's averages, and what the forward keeps for
the backward. Its least time is that of an A100 on which every kernel reaches the bandwidth of the memory
(2.04 TB/s) or the peak of the tensor cores (312 TFLOP/s), whichever takes longer.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from kept import Kept
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

# Kinds of kernels, by parts of an operator's name; the first that fits.
KINDS = {
    "deformable attention": ("ms_deform_attn",),
    "token convolution": ("token_depthwise_conv",),
    "attention": ("scaled_dot_product", "softmax"),
    "convolution": ("convolution", "mkldnn"),
    "matrix products": ("mm", "linear", "dot"),
    "layer norms": ("layer_norm",),
    "batch norms": ("batch_norm",),
    "casts and copies": ("_to_copy", "copy_", "clone", "constant_pad", "contiguous"),
    "cat and stack": ("cat", "stack"),
    "resizing": ("upsample", "avg_pool", "max_pool"),
    "sums": ("sum", "mean"),
    "activations": ("gelu", "relu", "silu", "sigmoid"),
    "adds and products": ("add", "mul", "div", "sub", "neg"),
    "fills": ("zero", "fill", "ones", "empty", "new_", "full", "arange", "linspace"),
}
# ViT, and what of ViT-CoMer depends on the size
SIZES = {
    "tiny": ({"embed_dim": 24, "depth": 4, "num_heads": 3}, 3, 1.0),
    "T": ({"embed_dim": 192, "depth": 12, "num_heads": 3}, 6, 1.0),
    "S": ({"embed_dim": 384, "depth": 12, "num_heads": 6}, 6, 1.0),
    "B": ({"embed_dim": 768, "depth": 12, "num_heads": 12}, 12, 0.5),
    "L": ({"embed_dim": 1024, "depth": 24, "num_heads": 16}, 16, 0.5),
}
BANDWIDTH, PEAK = 2.039e12, 312e12  # of an A100 with 80 GB: bytes and bfloat16 operations a second
# What AdamW in one kernel reads and writes of a float32 weight: itself, its gradient, two averages.
BYTES_OF_ADAMW = 28
# Operators that make tensors of memory that nobody reads or writes yet, or only look at a shape.
WITHOUT_KERNEL = ("empty", "detach", "_unsafe_view", "sym_", "is_same_size", "lift_fresh")


class Traffic(TorchDispatchMode):
    """Counts kernels and bytes by kind while it is active.

    Attributes:
        kernels: launches by kind.
        bytes: bytes read and written by kind.
        seconds: the least time of all kernels, see `BANDWIDTH`.
        kept: bytes that the forward keeps for the backward, besides parameters and buffers.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kernels: dict[str, int] = defaultdict(int)
        self.bytes: dict[str, int] = defaultdict(int)
        self.seconds = 0.0
        self.kept = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = list(tensors((args, kwargs)))
        outputs = list(tensors(result))
        name = func._schema.name.split("::")[-1]
        written = [t for t in outputs if not shares_memory(t, inputs)]
        if func._schema.is_mutable:
            written = outputs
        if written and not name.startswith(WITHOUT_KERNEL):
            kind = kind_of(name)
            moved = sum(t.numel() * t.element_size() for t in inputs + written)
            self.kernels[kind] += 1
            self.bytes[kind] += moved
            flops = flops_of(func, args, kwargs or {}, result)
            self.seconds += max(moved / BANDWIDTH, flops / PEAK)
        return result


def flops_of(func: Any, args: tuple, kwargs: dict, result: Any) -> int:
    """Operations of a kernel, 0 where its time is its memory's; PyTorch does not count a CPU's attention."""
    packet = func._overloadpacket
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return sdpa_flop_count(*(t.shape for t in args[:3]))
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return sdpa_backward_flop_count(*(t.shape for t in args[:4]))
    count_flops = flop_registry.get(packet)
    return count_flops(*args, **kwargs, out_val=result) if count_flops else 0


def tensors(values: Any) -> Iterator[Tensor]:
    return (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))


def shares_memory(tensor: Tensor, others: list[Tensor]) -> bool:
    storage = tensor.untyped_storage()._cdata
    return any(storage == other.untyped_storage()._cdata for other in others)


def kind_of(name: str) -> str:
    for kind, parts in KINDS.items():
        if any(part in name for part in parts):
            return kind
    return f"other ({name})"


def on_fake_cpu(module: nn.Module) -> nn.Module:
    """Gives a module made on the meta device parameters that are fake tensors of a CPU."""
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                fake = torch.empty_like(parameter, device="cpu")
                part._parameters[name] = nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device="cpu")
    return module


def count(make: Callable[[], nn.Module], image: int, batch: int, dtype: torch.dtype) -> Traffic:
    """Counts one forward and backward of a network in training."""
    with torch.device("meta"):
        net = make().train()
    autocast = nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_fake_cpu(net)
        images = torch.empty(batch, 3, image, image)
        with Traffic() as traffic:
            with autocast, Kept(net) as kept:
                outputs = net(images)
            traffic.kept = sum(kept.activations.values()) + sum(kept.casts.values())
            outputs = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
            torch.autograd.backward(outputs, [torch.empty_like(o) for o in outputs])
    return traffic


def comer(size: str, frozen: bool = False, **arguments: Any) -> nn.Module:
    from comer_d2.network import ViT, ViTCoMerNet

    vit, heads, ratio = SIZES[size]
    stage = vit["depth"] // 4
    windows = [i for i in range(vit["depth"]) if (i + 1) % stage]
    freeze = {"freeze_at": vit["depth"], "frozen_dtype": "bfloat16"} if frozen else {}
    return ViTCoMerNet(
        ViT(**vit, **freeze, window_block_indexes=windows),
        interaction_indexes=[(i * stage, (i + 1) * stage - 1) for i in range(4)],
        deform_num_heads=heads,
        deform_ratio=ratio,
        **arguments,
    )


def plain_vit(size: str) -> nn.Module:
    from timm.models.vision_transformer import VisionTransformer

    vit, _, _ = SIZES[size]
    return VisionTransformer(**vit, num_classes=0, global_pool="", dynamic_img_size=True)


def states(make: Callable[[], nn.Module]) -> tuple[int, int]:
    """Bytes of weights, gradients and AdamW's averages, and number of trained parameters."""
    with torch.device("meta"):
        parameters = list(make().parameters())
    trained = sum(p.numel() for p in parameters if p.requires_grad)
    return sum(p.numel() * p.element_size() for p in parameters) + 12 * trained, trained


def report(size: str, image: int, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """Counts both networks, prints a table, and returns it."""
    networks: dict[str, Callable[[], nn.Module]] = {
        f"ViT-CoMer-{size}": lambda: comer(size),
        "its ViT frozen": lambda: comer(size, frozen=True),
        "and only read": lambda: comer(size, frozen=True, use_cti_to_v=False),
        f"plain ViT-{size}": lambda: plain_vit(size),
    }
    rows = {name: count(make, image, batch, dtype) for name, make in networks.items()}
    kinds = sorted(
        {kind for traffic in rows.values() for kind in traffic.kernels},
        key=lambda kind: -max(traffic.bytes[kind] for traffic in rows.values()),
    )
    print(f"\n{size} at {image} x {image}, batch {batch}, {str(dtype).removeprefix('torch.')}")
    print(f"{'':24}" + "".join(f"{name:>26}" for name in rows))
    print(f"{'':24}" + f"{'kernels':>14}{'GiB':>12}" * len(rows))
    for kind in [*kinds, "all"]:
        figures = [
            (sum(t.kernels.values()), sum(t.bytes.values()))
            if kind == "all"
            else (t.kernels[kind], t.bytes[kind])
            for t in rows.values()
        ]
        print(f"{kind:24}" + "".join(f"{n:14}{b / 2**30:12.2f}" for n, b in figures))
    memory = {}
    for name, make in networks.items():
        held, trained = states(make)
        least = rows[name].seconds + trained * BYTES_OF_ADAMW / BANDWIDTH
        memory[name] = {"states": held, "kept": rows[name].kept, "least_seconds": least}
    print(
        "\n".join(
            f"{title:24}" + "".join(f"{value:>26}" for value in values)
            for title, values in {
                "states, GiB": [f"{m['states'] / 2**30:.2f}" for m in memory.values()],
                "kept for backward, GiB": [f"{m['kept'] / 2**30:.2f}" for m in memory.values()],
                "least time, ms": [f"{m['least_seconds'] * 1e3:.0f}" for m in memory.values()],
            }.items()
        )
    )
    return {
        "size": size,
        "image": image,
        "batch": batch,
        "dtype": str(dtype).removeprefix("torch."),
        "networks": {
            name: {
                kind: {"kernels": traffic.kernels[kind], "bytes": traffic.bytes[kind]}
                for kind in kinds
                if traffic.kernels[kind]
            }
            for name, traffic in rows.items()
        },
        "memory": memory,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", nargs="+", choices=list(SIZES), default=["S", "L"])
    parser.add_argument("--image", type=int, default=1024, help="side in pixels (%(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="bfloat16")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    rows = [report(size, options.image, options.batch, dtype) for size in options.size]
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
