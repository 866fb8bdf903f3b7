"""Parts that ViT layouts cut in different ways: tokens and positions, q/k/v, gated MLPs."""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .files import WeightsError
from .ledger import Ledger, Pretraining


def move_tokens(ledger: Ledger, tokens: Sequence[str], table: str = "pos_embed") -> None:
    """Takes class, distillation and register tokens, and the position table, where there are any.

    Tokens that have a row in the table get it added: they are never used without.

    Args:
        ledger: of the source.
        tokens: names of the tokens (1, n, D), in the order that they have in the sequence.
        table: name of the position table (1, rows, D); the rows of tokens come first.
    """
    found = [name for name in tokens if name in ledger.left]
    prefix = []
    for name in found:
        prefix.append(take_sequence(ledger, name, [t.shape[2] for t in prefix]))
        ledger.note(name, prefix[-1].numel(), "prefix_tokens")
    if table in ledger.left:
        rows = take_sequence(ledger, table, [t.shape[2] for t in prefix])
        num_class = token_rows(table, rows.shape[1], sum(t.shape[1] for t in prefix))
        ledger.put("pos_embed", rows[:, num_class:])
        ledger.note(table, rows[:, num_class:].numel(), "pos_embed")
        for i in range(num_class):
            target = "prefix_tokens" if i else "pos_embed.class_row"
            ledger.note(table, rows.shape[2], target, "a token's row, added to it")
        if num_class:
            ledger.put("pos_embed.class_row", rows[:, :1])
            joined = torch.cat(prefix, dim=1)
            prefix = [joined[:, :num_class] + rows[:, :num_class], joined[:, num_class:]]
    if prefix:
        ledger.put("prefix_tokens", torch.cat(prefix, dim=1))


def take_sequence(ledger: Ledger, name: str, widths: Sequence[int] = ()) -> Tensor:
    """Takes a tensor that must be (1, n, D), with D as in all of ``widths``."""
    tensor = ledger.take(name)
    if tensor.ndim != 3 or tensor.shape[0] != 1 or {tensor.shape[2], *widths} != {tensor.shape[2]}:
        expected = f"(1, n, {widths[0]})" if widths else "(1, n, D)"
        raise WeightsError(f"'{name}' must have shape {expected}, got {tuple(tensor.shape)}")
    return tensor


def token_rows(table: str, rows: int, num_tokens: int) -> int:
    """How many rows of a position table are tokens': what leaves a square grid."""
    for num_class in range(num_tokens + 1):
        if rows > num_class and math.isqrt(rows - num_class) ** 2 == rows - num_class:
            return num_class
    raise WeightsError(
        f"'{table}' has {rows} rows, which is no square grid and at most {num_tokens} tokens"
    )


def block_numbers(ledger: Ledger, pattern: str) -> list[int]:
    """Numbers of the blocks that have a tensor; ``{}`` in the pattern stands for the number."""
    before, after = map(re.escape, pattern.split("{}"))
    names = (re.fullmatch(rf"{before}(\d+){after}", name) for name in ledger.left)
    return sorted(int(match[1]) for match in names if match)


def fuse_qkv(
    ledger: Ledger, pattern: str, kind: str, parts: Sequence[str] = ("q", "k", "v")
) -> None:
    """Puts separate q, k and v together, in all blocks that have them apart.

    Args:
        ledger: of the source.
        pattern: of the source's names; the first ``{}`` is the block, the second the part.
        kind: ``"weight"`` or ``"bias"``.
        parts: how q, k and v are called.
    """
    before, after = pattern.split("{}", 1)
    for i in block_numbers(ledger, before + "{}" + after.format(parts[0])):
        names = [pattern.format(i, part) for part in parts]
        ledger.concatenate(names, f"blocks.{i}.attn.qkv.{kind}")


def split_glu(ledger: Ledger, packed: str | None = None) -> None:
    """Takes apart gated MLPs whose gate and value are one tensor, the gate first.

    Args:
        ledger: of the source.
        packed: name of the tensor, ``{}`` for the block and without ``.weight``. By default
            ``mlp.w12`` (with ``w3``), or an ``mlp.fc1`` with twice the rows that ``fc2`` reads.
    """
    names = [packed] if packed else ["blocks.{}.mlp.w12", "blocks.{}.mlp.fc1"]
    for name in names:
        for kind in ("weight", "bias"):
            for i in block_numbers(ledger, f"{name}.{kind}"):
                if name.endswith("fc1") and not is_packed(ledger, i):
                    continue
                targets = [f"blocks.{i}.mlp.fc1_{part}.{kind}" for part in "gx"]
                ledger.split(f"{name.format(i)}.{kind}", targets)
    ledger.rename([(r"blocks\.(\d+)\.mlp\.w3\.(weight|bias)", r"blocks.\1.mlp.fc2.\2")])


def is_packed(ledger: Ledger, i: int) -> bool:
    """Whether ``fc1`` of block i gives twice what ``fc2`` reads."""
    gate = ledger.result.tensors.get(f"blocks.{i}.mlp.fc1_g.weight")
    if gate is not None:  # the weight was split already: now its bias
        return True
    fc1 = ledger.left.get(f"blocks.{i}.mlp.fc1.weight")
    fc2 = ledger.left.get(f"blocks.{i}.mlp.fc2.weight")
    return fc1 is not None and fc2 is not None and fc1.shape[0] == 2 * fc2.shape[-1]


def mask_key_bias(ledger: Ledger) -> None:
    """Applies DINOv3's masks of 0 and 1 to the biases of q, k and v."""
    for i in block_numbers(ledger, "blocks.{}.attn.qkv.bias_mask"):
        name = f"blocks.{i}.attn.qkv.bias"
        mask, bias = ledger.take(f"{name}_mask"), ledger.take(name)
        if mask.shape != bias.shape or not ((mask == 0) | (mask == 1)).all():
            raise WeightsError(f"'{name}_mask' must be 0 or 1 for each of {bias.numel()} biases")
        ledger.put(name, bias * mask)
        ledger.note(name, bias.numel(), name)
        ledger.note(f"{name}_mask", mask.numel(), name, "applied to the bias")


# What families compute that their shapes do not show; PLAIN_COMPUTATION has the rest.
CLIP = {"layer_norm_eps": 1e-5, "pre_norm_eps": 1e-5}
COMPUTATION: dict[str, dict[str, Any]] = {
    "beit": {"use_rel_pos_bias": True},
    "beitv2": {"use_rel_pos_bias": True},
    "uni-perceiver": {"layer_norm_eps": 1e-5, "pre_norm_eps": 1e-5},
    "uni-perceiver-post-norm": {"pre_norm_eps": 1e-12, "post_norm": True},
    "clip": CLIP,
    "clip-quickgelu": {**CLIP, "mlp": "quick_gelu"},
    "dinov3": {"rope": "dinov3", "layer_norm_eps": 1e-5},
    "eva02": {"rope": "eva02"},
}


def close(ledger: Ledger, family: str) -> Pretraining:
    """The result, with what the family computes.

    Raises:
        WeightsError: if something other than numbers with a fraction is used.
    """
    for part in ledger.result.parts:
        if part.target is not None and part.dtype is not None and not part.dtype.is_floating_point:
            raise WeightsError(f"{family}: '{part.source}' is of {part.dtype}, no type of weights")
    gated = "blocks.0.mlp.fc1_g.weight" in ledger.result.tensors
    mlp = {"mlp": "swiglu"} if gated else {}
    return ledger.close(**{**COMPUTATION.get(family, {}), **mlp})
