"""Times Mask2Former's head against the same head with the official project's structure.

    python benchmarks/mask2former_head.py
    python benchmarks/mask2former_head.py --json benchmarks/results/mask2former_head_cpu.json

The rival has the same weights and gives the same predictions (checked first), but works as the
official head does: deformable attention by `grid_sample`, as its fallback in PyTorch;
`nn.MultiheadAttention`, tokens first, with attention weights returned and the mask repeated for
every head; a pixel decoder that leaves autocast and turns its inputs to float32; PyTorch's own
linear layers. The two take turns within a round; figures are medians over rounds, ratios are
medians of the rounds' ratios. Peak memory is of one call in a process of its own, beyond what the
process held before it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext

import op
import rounds

# ViT-CoMer-S under the head of the published recipes: stride -> channels.
CHANNELS = 384
STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
NUM_CLASSES = 150
# side of the image, what is timed, type under autocast
CASES = [
    (512, "forward", "float32"),
    (512, "forward", "bfloat16"),
    (512, "forward + backward", "float32"),
    (512, "forward + backward", "bfloat16"),
    (1024, "forward", "float32"),
]
VARIANTS = ("comer_d2", "official structure")


def build(variant: str, device: str):
    """The head, the same weights for both variants."""
    import torch

    from comer_d2.heads import Mask2FormerHead
    from comer_d2.heads.mask_decoder import MaskedTransformerDecoder
    from comer_d2.heads.pixel_decoder import MSDeformAttnPixelDecoder
    from comer_d2.layers.attention import MultiheadAttention

    torch.manual_seed(0)
    head = Mask2FormerHead(
        MSDeformAttnPixelDecoder(in_channels=[CHANNELS] * 4),
        MaskedTransformerDecoder(num_classes=NUM_CLASSES),
    ).to(device)
    if variant == "comer_d2":
        return head
    for parent in list(head.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, MultiheadAttention):
                setattr(parent, name, repeated_mask_attention(child))
    decode = head.pixel_decoder.forward

    def in_float32(features):
        with torch.autocast(device, enabled=False):
            return decode({name: feature.float() for name, feature in features.items()})

    head.pixel_decoder.forward = in_float32
    return head


def repeated_mask_attention(ours):
    """`nn.MultiheadAttention` with the weights of ours, called as the official layers call it."""
    import torch
    from torch import nn

    class RepeatedMaskAttention(nn.MultiheadAttention):
        def forward(self, query, key, value, allowed=None):
            if allowed is not None:  # (B, 1, Q, N) -> (B * heads, Q, N), True where blocked
                allowed = ~allowed.repeat(1, self.num_heads, 1, 1).flatten(0, 1)
            tokens_first = (x.transpose(0, 1) for x in (query, key, value))
            return super().forward(*tokens_first, attn_mask=allowed)[0].transpose(0, 1)

    attention = RepeatedMaskAttention(ours.out_proj.in_features, ours.num_heads)
    projections = (ours.q_proj, ours.k_proj, ours.v_proj)
    attention.load_state_dict(
        {
            "in_proj_weight": torch.cat([proj.weight for proj in projections]),
            "in_proj_bias": torch.cat([proj.bias for proj in projections]),
            "out_proj.weight": ours.out_proj.weight,
            "out_proj.bias": ours.out_proj.bias,
        }
    )
    return attention.to(ours.out_proj.weight.device)


def make_features(side: int, device: str):
    import torch

    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randn(1, CHANNELS, side // s, side // s, generator=generator).to(device)
        for name, s in STRIDES.items()
    }


def make_call(variant: str, side: int, direction: str, dtype: str, device: str) -> Callable:
    """One call of the head; a backward reaches the features too, as it does in training."""
    import torch

    head = build(variant, device)
    features = make_features(side, device)
    half = torch.autocast(device, torch.bfloat16, enabled=dtype == "bfloat16")

    if direction == "forward" and variant == "comer_d2":
        head.eval()  # without the auxiliary outputs, which the official head always returns

    def call():
        with nullcontext() if variant == "comer_d2" else rounds.plain_layers():
            if direction == "forward":
                with torch.no_grad(), half:
                    return head(features)
            inputs = {name: x.detach().requires_grad_() for name, x in features.items()}
            head.zero_grad()
            with half:
                outputs = head(inputs)
            predictions = [outputs, *outputs["aux_outputs"]]
            sum(
                p[key].float().mean() for p in predictions for key in p if key != "aux_outputs"
            ).backward()
            return outputs

    return call


def check(device: str) -> None:
    """Both variants predict the same, up to rounding."""
    import torch

    ours, theirs = (make_call(v, 128, "forward + backward", "float32", device)() for v in VARIANTS)
    # The first: behind a threshold, in the attention masks, rounding may become a difference.
    for key in ("pred_logits", "pred_masks"):
        torch.testing.assert_close(
            ours["aux_outputs"][0][key], theirs["aux_outputs"][0][key], rtol=1e-3, atol=1e-3
        )
    difference = (ours["pred_logits"] - theirs["pred_logits"]).abs().max().item()
    print(f"largest difference of the last prediction's class logits: {difference:.1e}")


def measure(side: int, direction: str, dtype: str, count: int, device: str) -> dict:
    """Milliseconds of both, and the median of their ratios."""
    calls = {v: make_call(v, side, direction, dtype, device) for v in VARIANTS}
    times = rounds.take_turns(calls, count, device)
    return {
        "image": side,
        "direction": direction,
        "dtype": dtype,
        "milliseconds": rounds.medians(times),
        "official structure / comer_d2": rounds.median_ratio(
            times[VARIANTS[1]], times[VARIANTS[0]]
        ),
    }


def peak_memory(variant: str, side: int, direction: str, dtype: str, device: str) -> float:
    """MiB that one call takes beyond what was there before it, in a fresh process."""
    script = f"""
import sys
sys.path[:0] = [{str(op.ROOT)!r}, {str(op.ROOT / "benchmarks")!r}]
import torch, mask2former_head as benchmark
torch.set_num_threads({os.environ.get("HEAD_THREADS", "2")})
small, large = (
    benchmark.make_call({variant!r}, side, {direction!r}, {dtype!r}, {device!r}) for side in (64, {side})
)
small()
if {device!r} == "cuda":
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    large()
    print((torch.cuda.max_memory_allocated() - before) / 2**20)
else:
    def status(key):
        lines = open("/proc/self/status").read().splitlines()
        return int(next(line for line in lines if line.startswith(key)).split()[1]) / 1024
    before = status("VmRSS")
    open("/proc/self/clear_refs", "w").write("5")  # the high-water mark starts anew
    large()
    print(status("VmHWM") - before)
"""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True
    )
    return float(done.stdout or "nan")


def main() -> None:
    parser = rounds.parser(__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args()
    machine = rounds.start(options, options.device)
    os.environ["HEAD_THREADS"] = str(options.threads)
    check(options.device)
    print(f"{'':42}" + "".join(f"{variant:>30}" for variant in VARIANTS) + "   ratio")
    rows = []
    for case in CASES:
        row = measure(*case, options.rounds, options.device)
        row["peak MiB"] = {v: peak_memory(v, *case, options.device) for v in VARIANTS}
        rows.append(row)
        figures = (
            f"{row['milliseconds'][v]:.0f} ms {row['peak MiB'][v]:.0f} MiB" for v in VARIANTS
        )
        print(
            f"{case[0]:5} {case[1]:20} {case[2]:15}"
            + "".join(f"{figure:>30}" for figure in figures)
            + f"{row['official structure / comer_d2']:8.2f}",
            flush=True,
        )
    rounds.write(options, machine, rows)


if __name__ == "__main__":
    main()
