"""A `Pretraining` -> timm's names and cuts of the same family: the other direction."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .files import WeightsError, first
from .ledger import Pretraining
from .vit_layouts import FINAL_NORM, OWN_CLASS_ROW

TABLE = ".attn.relative_position_bias_table"


@dataclass(frozen=True)
class TimmModel:
    """How timm's models of a family hold what the branch holds in another way.

    Args:
        tokens: names of the tokens before the patches; the last one, if it is registers, has all
            that are left.
        embeds_tokens: whether the position table has rows of the tokens (never of registers).
        layer_scale: name of the layer scale, ``{}`` for 1 and 2; ``None`` if the family has none.
        fused_bias: whether q, k and v have one bias; otherwise k has none.
        patch_bias: whether the patch embedding has a bias.
    """

    tokens: tuple[str, ...] = ("cls_token", "reg_token")
    embeds_tokens: bool = True
    layer_scale: str | None = None
    fused_bias: bool = True
    patch_bias: bool = True


PLAIN = TimmModel()
EVA = TimmModel(layer_scale="gamma_{}", fused_bias=False)
CLIP = TimmModel(patch_bias=False)
TIMM_MODELS: dict[str, TimmModel] = {
    "vit": TimmModel(layer_scale="ls{}.gamma"),
    "deit": PLAIN,
    "deit-distilled": TimmModel(tokens=("cls_token", "dist_token")),
    "augreg": PLAIN,
    "mae": PLAIN,
    "dinov2": TimmModel(layer_scale="ls{}.gamma"),
    "deit3": TimmModel(layer_scale="ls{}.gamma", embeds_tokens=False),
    "siglip2": TimmModel(tokens=()),
    "clip": CLIP,
    "clip-quickgelu": CLIP,
    "beit": EVA,
    "beitv2": EVA,
    "eva02": TimmModel(fused_bias=False),
    "dinov3": EVA,
}


@dataclass
class Written:
    """A state dict by timm's names.

    Args:
        tensors: the state dict.
        unused: names of the branch that timm's model has no tensor for -> why nothing is lost.
        neutral: timm's names that the branch has nothing for -> their number of elements; zero.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    unused: dict[str, str] = field(default_factory=dict)
    neutral: dict[str, int] = field(default_factory=dict)


def to_timm(pretraining: Pretraining, family: str) -> Written:
    """Writes a ViT by the names of timm's model of its family.

    What timm's model computes from it is what the branch computes with global attention.

    Args:
        pretraining: the weights; where they come from a family's own layout, with its final norm.
        family: one of ``TIMM_MODELS``.

    Raises:
        WeightsError: if timm has no model of the family, or none that holds these weights.
    """
    if family not in TIMM_MODELS:
        raise WeightsError(
            f"timm has no model of the family '{family}'; it has {', '.join(TIMM_MODELS)}"
        )
    writing = Writing(pretraining, family)
    writing.write_tokens()
    for i in range(pretraining.depth):
        writing.write_bias(f"blocks.{i}.attn.")
        writing.write_layer_scale(f"blocks.{i}.")
        writing.write_attention_and_mlp(f"blocks.{i}.")
    return writing.finish()


class Writing:
    """The steps of :func:`to_timm`; arguments as there."""

    def __init__(self, pretraining: Pretraining, family: str) -> None:
        self.family, self.model = family, TIMM_MODELS[family]
        self.left = {
            name.replace(".qkv.q_bias", ".q_bias").replace(".qkv.v_bias", ".v_bias"): tensor
            for name, tensor in pretraining.tensors.items()
        }
        self.dim = pretraining.embed_dim
        self.sources = {part.source for part in pretraining.parts}
        self.norms = {
            part.source: pretraining.dropped[part.source]
            for part in pretraining.parts
            if part.note == FINAL_NORM
        }
        self.result = Written()
        if any(part.note == OWN_CLASS_ROW for part in pretraining.parts):
            self.result.unused["pos_embed.class_row"] = OWN_CLASS_ROW

    def write_tokens(self) -> None:
        """Tokens, and the position table with or without their rows."""
        tokens = self.left.pop("prefix_tokens", None)
        table = self.left.pop("pos_embed", None)
        class_row = self.left.pop("pos_embed.class_row", None)
        names = self.model.tokens
        if any(source.endswith("dist_token") for source in self.sources):
            names = TIMM_MODELS["deit-distilled"].tokens
        count = 0 if tokens is None else tokens.shape[1]
        if count > len(names) and "reg_token" not in names:
            raise WeightsError(
                f"timm's {self.family} has {len(names)} tokens before the patches, this ViT {count}"
            )
        if count == 0 and self.family in ("beit", "beitv2"):
            raise WeightsError(
                "timm's BEiT always has a class token; this ViT was made without "
                "(num_prefix_tokens=0)"
            )
        for i, name in enumerate(names[:count]):
            last = name == "reg_token"
            self.result.tensors[name] = tokens[:, i:] if last else tokens[:, i : i + 1]
        if table is None:
            return
        has_registers = "reg_token" in self.result.tensors
        embeds = self.model.embeds_tokens and count > 0 and not has_registers
        if self.family == "vit":  # of any kind: the source's table tells
            embeds = embeds and class_row is not None
        if embeds:  # the tokens have their rows in them
            rows = table.new_zeros(1, count, table.shape[2])
            table = torch.cat([rows, table], dim=1)
            self.result.neutral["pos_embed"] = rows.numel()
        self.result.tensors["pos_embed"] = table

    def write_bias(self, attn: str) -> None:
        """One bias of q, k and v, or two of q and v."""
        fused, apart = attn + "qkv.bias", [attn + "q_bias", attn + "v_bias"]
        if self.model.fused_bias and all(name in self.left for name in apart):
            q, v = (self.left.pop(name) for name in apart)
            self.left[fused] = torch.cat([q, torch.zeros_like(q), v])
        elif not self.model.fused_bias and fused in self.left:
            q, k, v = self.left.pop(fused).chunk(3)
            if k.any():
                raise WeightsError(f"timm's {self.family} has no bias of k, but '{fused}' is one")
            self.left |= dict(zip(apart, (q, v), strict=True))
        biases = [self.left[name] for name in apart if name in self.left]
        if self.family == "dinov3" and biases and not any(bias.any() for bias in biases):
            # timm has DINOv3 without biases, and as "qkvb" with: the distilled ones are zero.
            for name in apart:
                del self.left[name]
                here = name.replace(attn, f"{attn}qkv.")
                self.result.unused[here] = self.result.unused[fused] = "zero"

    def write_layer_scale(self, block: str) -> None:
        """By the family's name, or multiplied into the layer before it."""
        for i, layer in ((1, "attn.proj"), (2, "mlp.fc2")):
            gamma = self.left.pop(f"{block}ls{i}.gamma", None)
            if gamma is None:
                continue
            if self.model.layer_scale is not None:
                self.result.tensors[block + self.model.layer_scale.format(i)] = gamma
                continue
            for part, factor in (("weight", gamma[:, None]), ("bias", gamma)):
                self.left[f"{block}{layer}.{part}"] = self.left[f"{block}{layer}.{part}"] * factor

    def write_attention_and_mlp(self, block: str) -> None:
        """q, k and v together or apart, and the gate of an MLP, as timm's classes have them."""
        if self.family == "eva02" and f"{block}mlp.norm.weight" in self.left:  # B and L
            weights = self.left.pop(f"{block}attn.qkv.weight").chunk(3)
            for part, weight in zip("qkv", weights, strict=True):
                self.result.tensors[f"{block}attn.{part}_proj.weight"] = weight
            for part in "qv":
                bias = self.left.pop(f"{block}attn.{part}_bias")
                self.result.tensors[f"{block}attn.{part}_proj.bias"] = bias
        elif self.family in ("eva02", "dinov2", "vit"):
            for kind in ("weight", "bias"):
                names = [f"{block}mlp.fc1_{part}.{kind}" for part in "gx"]
                if all(name in self.left for name in names):
                    packed = torch.cat([self.left.pop(name) for name in names])
                    self.result.tensors[f"{block}mlp.fc1.{kind}"] = packed

    def finish(self) -> Written:
        """The tensors with the same name in both, and the final norm."""
        bias = self.left.get("patch_embed.proj.bias")
        if bias is not None and not self.model.patch_bias and not bias.any():
            del self.left["patch_embed.proj.bias"]
            self.result.unused["patch_embed.proj.bias"] = "zero, and timm's model has none"
        foreign = [name for name in self.left if self.is_foreign(name)]
        if foreign:
            raise WeightsError(f"timm's {self.family} has no {first(list(map(repr, foreign)))}")
        tables = {tuple(t.shape) for name, t in self.left.items() if name.endswith(TABLE)}
        if len(tables) > 1:
            raise WeightsError(
                f"timm's {self.family} has one window in all blocks, but the tables of relative "
                f"positions have shapes {sorted(tables)}"
            )
        self.result.tensors |= self.left
        for name, tensor in self.norms.items():
            if not tensor.is_floating_point() or tensor.shape != (self.dim,):
                raise WeightsError(
                    f"'{name}' must have shape ({self.dim},), got {tuple(tensor.shape)} of "
                    f"{tensor.dtype}"
                )
            stem = "fc_norm" if name.startswith("fc_norm") else "norm"
            self.result.tensors[f"{stem}.{name.rsplit('.', 1)[-1]}"] = tensor
        return self.result

    def is_foreign(self, name: str) -> bool:
        """Whether timm's models of the family have no such tensor."""
        of_family: Mapping[str, bool] = {
            "norm_pre.": self.family in ("clip", "clip-quickgelu"),
            TABLE: self.family in ("beit", "beitv2"),
            ".attn.norm.": self.family == "eva02",
            ".mlp.norm.": self.family == "eva02",
            ".mlp.fc1_": self.family in ("dinov3", "eva02"),  # dinov2's are packed by now
            "patch_embed.proj.bias": self.model.patch_bias,
        }
        return any(part in name and not has for part, has in of_family.items())
