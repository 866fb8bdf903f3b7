"""What pretrained ViTs have in common and names cannot say: tokens with their positions, gated MLPs."""

import math
import re
from collections.abc import Sequence

import torch
from torch import Tensor

from .conversion import Conversion, Names, Step, same
from .files import WeightsError

# Why tensors are not used.
FINAL_NORM = "ViT-CoMer has no norm after the last block"
CLASSIFIER = "the family's own head"
MASK_TOKEN = "only used in masked pretraining"
COMPUTED = "computed here, not learnt"

# The names that timm and most authors use.
PLAIN_BLOCK: dict[Names, Names] = {
    **same("patch_embed.proj", "blocks.#.norm1", "blocks.#.norm2", "blocks.#.attn.qkv"),
    **same("blocks.#.attn.proj", "blocks.#.mlp.fc1", "blocks.#.mlp.fc2"),
}
GATED_MLP = same("blocks.#.mlp.fc1_g", "blocks.#.mlp.fc1_x")
LAYER_SCALE = same("blocks.#.ls1.gamma", "blocks.#.ls2.gamma")
GAMMA: dict[Names, Names] = {
    f"blocks.#.gamma_{i}": f"blocks.#.ls{i}.gamma"
    for i in (1, 2)
}  # fmt: skip
QUERY_VALUE_BIAS: dict[Names, Names] = {
    f"blocks.#.attn.{part}_bias": f"blocks.#.attn.qkv.{part}_bias"
    for part in "qv"
}  # fmt: skip
HEADS = {
    **dict.fromkeys(("norm.*", "fc_norm.*"), FINAL_NORM),
    **dict.fromkeys(("head.*", "head_dist.*", "attn_pool.*", "lm_head.*"), CLASSIFIER),
    "mask_token": MASK_TOKEN,
}


def tokens(*names: str, table: str = "pos_embed") -> Step:
    """Takes class, distillation and register tokens, and the position table, where there are any.

    Tokens that have a row in the table get it added: they are never used without.

    Args:
        names: of the tokens (1, n, D), in the order that they have in the sequence.
        table: name of the position table (1, rows, D); the rows of tokens come first.
    """

    def take(conversion: Conversion) -> None:
        prefix: list[Tensor] = []
        for name in names:
            if name in conversion.left:
                prefix.append(take_sequence(conversion, name, [t.shape[2] for t in prefix]))
                conversion.note(name, prefix[-1].numel(), "prefix_tokens")
        if table in conversion.left:
            rows = take_sequence(conversion, table, [t.shape[2] for t in prefix])
            count = token_rows(table, rows.shape[1], sum(t.shape[1] for t in prefix))
            conversion.put("pos_embed", rows[:, count:])
            conversion.note(table, rows[:, count:].numel(), "pos_embed")
            for i in range(count):
                target = "prefix_tokens" if i else "pos_embed.class_row"
                conversion.note(table, rows.shape[2], target, "a token's row, added to it")
            if count:
                conversion.put("pos_embed.class_row", rows[:, :1])
                joined = torch.cat(prefix, dim=1)
                prefix = [joined[:, :count] + rows[:, :count], joined[:, count:]]
        if prefix:
            conversion.put("prefix_tokens", torch.cat(prefix, dim=1))

    return take


def take_sequence(conversion: Conversion, name: str, widths: Sequence[int] = ()) -> Tensor:
    """Takes a tensor that must be (1, n, D), with D as in all of ``widths``."""
    tensor = conversion.take(name)
    if tensor.ndim != 3 or tensor.shape[0] != 1 or {tensor.shape[2], *widths} != {tensor.shape[2]}:
        expected = f"(1, n, {widths[0]})" if widths else "(1, n, D)"
        raise WeightsError(f"'{name}' must have shape {expected}, got {tuple(tensor.shape)}")
    return tensor


def token_rows(table: str, rows: int, num_tokens: int) -> int:
    """How many rows of a position table are tokens': what leaves a square grid."""
    for count in range(num_tokens + 1):
        if rows > count and math.isqrt(rows - count) ** 2 == rows - count:
            return count
    raise WeightsError(
        f"'{table}' has {rows} rows, which is no square grid and at most {num_tokens} tokens"
    )


def block_numbers(conversion: Conversion, pattern: str) -> list[str]:
    """Numbers of the blocks that have a tensor; ``#`` in the pattern stands for the number."""
    expression = re.escape(pattern).replace(r"\#", r"(\d+)")
    found = (re.fullmatch(expression, name) for name in conversion.left)
    return [match[1] for match in found if match]


def unpack_gates(conversion: Conversion) -> None:
    """Cuts ``mlp.fc1`` where it gives twice what ``fc2`` reads: a gate, then what it opens."""
    for i in block_numbers(conversion, "blocks.#.mlp.fc1.weight"):
        mlp = f"blocks.{i}.mlp."
        fc1 = conversion.left[f"{mlp}fc1.weight"]
        fc2 = conversion.left.get(f"{mlp}fc2.weight", fc1)
        if fc1.ndim == fc2.ndim == 2 and len(fc1) == 2 * fc2.shape[1]:
            for kind in ("weight", "bias"):
                targets = [f"{mlp}fc1_{part}.{kind}" for part in "gx"]
                conversion.cut([f"{mlp}fc1.{kind}"], targets)


def as_sequences(*names: str) -> Step:
    """Gives tokens and tables that are written as (D) or (n, D) the shape (1, n, D)."""

    def reshape(conversion: Conversion) -> None:
        for name in names:
            if name in conversion.left:
                tensor = conversion.left[name]
                conversion.left[name] = tensor[(None,) * max(3 - tensor.ndim, 0)]

    return reshape
