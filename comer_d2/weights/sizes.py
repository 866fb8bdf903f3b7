"""The network that a state dict belongs to, by its shapes: what else must be there, and how large."""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..network import ViT, ViTCoMerNet
from ..network.vit import PATCH_SIZE
from ..network.vit_attention import QKVBias
from .files import WeightsError, first
from .fit import HEADS
from .ledger import PLAIN_COMPUTATION

# Arguments of the branch that say how it computes.
BRANCH_COMPUTATION = (
    "rope",
    "layer_norm_eps",
    "pre_norm_eps",
    "post_norm",
    "mlp",
    "use_rel_pos_bias",
)


def check_whole(tensors: Mapping[str, Tensor], own: Mapping[str, Tensor], what: str) -> None:
    """Raises WeightsError unless there are just the tensors of a network, in its shapes.

    Args:
        tensors: what there is.
        own: the network's state dict; only its shapes matter.
        what: what the tensors are of, for the message.
    """
    shapes = [
        f"'{name}' has shape {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in tensors
        if name in own and tensors[name].shape != own[name].shape
    ]
    kinds = [
        f"'{name}' is of {tensor.dtype}"
        for name, tensor in tensors.items()
        if name in own and kind_of(tensor) != kind_of(own[name])
    ]
    missing = [f"'{name}'" for name in own if name not in tensors]
    unexpected = [f"'{name}'" for name in tensors if name not in own]
    problems = [
        f"{text}{first(names, 4)}"
        for text, names in (
            ("missing: ", missing),
            ("not of it: ", unexpected),
            ("", shapes),
            ("", kinds),
        )
        if names
    ]
    if problems:
        raise WeightsError(f"{what}: " + "; ".join(problems))


def kind_of(tensor: Tensor) -> str:
    """Whether a tensor has numbers with a fraction, whole ones, or what else."""
    if tensor.is_floating_point():
        return "fraction"
    return str(tensor.dtype) if tensor.is_complex() or tensor.dtype is torch.bool else "whole"


def sized_network(tensors: Mapping[str, Tensor]) -> ViTCoMerNet:
    """A network, without memory for its weights, of the sizes that a state dict shows.

    What shapes do not show is not right in it: numbers of heads, windows, rates.

    Args:
        tensors: by the names of :class:`comer_d2.ViTCoMer`.

    Raises:
        WeightsError: if a tensor that decides about a size is missing or of no known form.
    """
    sizes = Sizes(tensors)
    dim, in_chans = sizes.shape("vit.patch_embed.proj.weight", 4)[:2]
    depth, interactions = sizes.count("vit.blocks.#."), sizes.count("interactions.#.")
    tables = [f"vit.blocks.{i}.attn.relative_position_bias_table" for i in range(depth)]
    relative = any(name in tensors for name in tables)
    table_shapes = [sizes.shape(name, 2) for name in tables] if relative else [(0, 1)] * depth
    has_positions = not relative or "vit.pos_embed" in tensors
    positions = sizes.shape("vit.pos_embed", 3)[1] if has_positions else 2
    switches = {
        argument: [sizes.has(f"interactions.{i}.{part}.") for i in range(interactions)]
        for argument, part in (
            ("use_mrfp", "mrfp"),
            ("use_cti_to_v", "cti_to_v"),
            ("cnn_feature_interaction", "cti_to_c"),
        )
    }
    last = f"interactions.{interactions - 1}.extra_cti.#."
    switches["cnn_feature_interaction"][-1] |= sizes.has(last + "feature_interaction.")
    with_ffn = sizes.has("interactions.#.*.ffn.ffn.")
    try:
        with torch.device("meta"):
            vit = ViT(
                in_chans=in_chans,
                embed_dim=dim,
                depth=depth,
                num_heads=table_shapes[0][1] if depth else 1,
                mlp_ratio=sizes.ratio("vit.blocks.#.mlp.fc1.weight", dim),
                qkv_bias=sizes.qkv_bias("vit.blocks.#.attn.qkv."),
                use_abs_pos=has_positions,
                use_rel_pos_bias=relative,
                layer_scale_init=1.0 if sizes.has("vit.blocks.#.ls1.gamma") else None,
                window_size=[(math.isqrt(rows) + 1) // 2 for rows, _ in table_shapes],
                pretrain_img_size=PATCH_SIZE * math.isqrt(positions - 1),
                draw_weights=False,
            )
            return ViTCoMerNet(
                vit,
                stem_width=sizes.shape("pyramid.stem.0.0.weight", 4)[0],
                interaction_indexes=shared_out(depth, interactions),
                deform_num_heads=1,
                deform_num_points=sizes.size("interactions.#.*.sampling.weight", 36) // 9,
                deform_ratio=sizes.ratio("interactions.#.*.value_proj.weight", dim),
                cffn_ratio=sizes.ratio("interactions.#.*.ffn.ffn.fc1.weight", dim)
                if with_ffn
                else None,
                mrfp_ratio=sizes.ratio("interactions.#.mrfp.fc1.weight", dim),
                num_extra_cti=sizes.count(last),
                **switches,
            )
    except ValueError as e:
        raise WeightsError(f"the shapes of this backbone do not fit together: {e}") from e


def sized_branch(
    tensors: Mapping[str, Tensor], computation: Mapping[str, Any] | None = None
) -> ViT:
    """A ViT branch, without memory for its weights, of the sizes that a pretraining shows.

    Patches are of another size where the pretraining's are; numbers of heads are not right in it.

    Args:
        tensors: by the branch's names, the class token's row in the position table.
        computation: how it computes, as :attr:`ViT.computation` has it; ``None``: as far as
            the names show it.

    Raises:
        WeightsError: as :func:`sized_network`.
    """
    sizes = Sizes(tensors)
    dim, in_chans, height, width = sizes.shape("patch_embed.proj.weight", 4)
    depth = sizes.count("blocks.#.")
    tokens = sizes.shape("prefix_tokens", 3)[1] if sizes.has("prefix_tokens") else 0
    rows = sizes.shape("pos_embed", 3)[1] if sizes.has("pos_embed") else 0
    grid, heads, windows = math.isqrt(rows), HEADS.get(dim, 1), [0] * depth
    computation = computation or {
        **PLAIN_COMPUTATION,
        "pre_norm_eps": 1e-5 if sizes.has("norm_pre.") else None,
        "mlp": "swiglu" if sizes.has("blocks.#.mlp.fc1_g.") else "gelu",
        "use_rel_pos_bias": sizes.has("blocks.#.attn.relative_position_bias_table"),
    }
    if computation["use_rel_pos_bias"]:
        tables = [f"blocks.{i}.attn.relative_position_bias_table" for i in range(depth)]
        table_shapes = [sizes.shape(name, 2) for name in tables]
        windows = [(math.isqrt(shape[0]) + 1) // 2 for shape in table_shapes]
        heads = table_shapes[0][1]
    gated = computation["mlp"] == "swiglu"
    hidden = "blocks.#.mlp.fc1_g.weight" if gated else "blocks.#.mlp.fc1.weight"
    try:
        with torch.device("meta"):
            branch = ViT(
                in_chans=in_chans,
                embed_dim=dim,
                depth=depth,
                num_heads=heads,
                mlp_ratio=sizes.ratio(hidden, dim),
                qkv_bias=sizes.qkv_bias("blocks.#.attn.qkv."),
                drop_path_rate=0.0,
                use_abs_pos=rows > 0,
                layer_scale_init=1.0 if sizes.has("blocks.#.ls1.gamma") else None,
                window_size=windows,
                pretrain_img_size=PATCH_SIZE * grid,
                pretrain_use_cls_token=rows > 0 and grid**2 != rows,
                num_prefix_tokens=tokens,
                sub_norms=[p for p in ("attn", "mlp") if sizes.has(f"blocks.#.{p}.norm.")],
                draw_weights=False,
                **{name: computation[name] for name in BRANCH_COMPUTATION},
            )
            bias = sizes.has("patch_embed.proj.bias") or computation["pre_norm_eps"] is None
            branch.patch_embed.proj = nn.Conv2d(in_chans, dim, (height, width), bias=bias)
            return branch
    except ValueError as e:
        raise WeightsError(f"the shapes of this ViT do not fit together: {e}") from e


class Sizes:
    """Sizes in a state dict.

    Names can have ``#`` for any number and ``*`` for any parts; the first tensor in the dict that
    matches counts, all others are checked against the network that it makes.

    Args:
        tensors: the state dict.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = tensors

    def shape(self, name: str, dims: int) -> tuple[int, ...]:
        """Shape of a tensor that must be there."""
        if name not in self.tensors:
            raise WeightsError(f"the tensor '{name}' is missing")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != dims or 0 in shape:
            raise WeightsError(f"'{name}' must have {dims} dimensions, got shape {shape}")
        return shape

    def has(self, prefix: str) -> bool:
        """Whether there is a name that begins so."""
        return any(re.match(pattern(prefix), name) for name in self.tensors)

    def size(self, name: str, default: int) -> int:
        """Rows of the first tensor of these names; the default if there is none."""
        found = (t for n, t in self.tensors.items() if re.fullmatch(pattern(name), n))
        tensor = next(found, None)
        return default if tensor is None or tensor.ndim == 0 else len(tensor)

    def ratio(self, name: str, dim: int) -> float:
        """The same in units of ``dim``, such that the network's rounding down gives the size."""
        return (self.size(name, dim) + 0.5) / dim

    def qkv_bias(self, prefix: str) -> QKVBias:
        """Which of q, k and v have a bias."""
        if self.has(prefix + "bias"):
            return "qkv"
        return "qv" if self.has(prefix + "q_bias") else "none"

    def count(self, prefix: str) -> int:
        """How many numbers there are for the last ``#`` of a prefix."""
        numbers = [re.match(pattern(prefix), name) for name in self.tensors]
        return 1 + max((int(m[m.lastindex]) for m in numbers if m), default=-1)


def pattern(name: str) -> str:
    """The regular expression of a name with ``#`` and ``*``."""
    return re.escape(name).replace(r"\#", r"(\d+)").replace(r"\*", ".*")


def shared_out(depth: int, interactions: int) -> list[tuple[int, int]]:
    """Any shares of the blocks among the interactions: they do not show in the weights."""
    if not 0 < interactions <= depth:
        raise WeightsError(f"{interactions} interactions for {depth} blocks")
    return [(i, i) for i in range(interactions - 1)] + [(interactions - 1, depth - 1)]
