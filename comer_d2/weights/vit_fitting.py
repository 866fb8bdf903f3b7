"""A pretrained ViT -> the ViT of a model: resampled where sizes differ, or a list of what does not fit."""

import fnmatch
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed, resize_rel_pos_bias_table
from torch import Tensor

from ..network.vit import LAYER_NORM_EPS, ViT
from ..network.vit_attention import CLASS_ROWS
from .conversion import Conversion
from .files import WeightsError
from .report import Entry, Status

# How the plain ViT computes; families name what differs.
PLAIN: dict[str, Any] = {
    "rope": None,
    "layer_norm_eps": LAYER_NORM_EPS,
    "pre_norm_eps": None,
    "post_norm": False,
    "mlp": "gelu",
    "use_rel_pos_bias": False,
}
# Heads of the usual widths; a ViT with another number would load and compute something else.
HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 896: 14, 1024: 16}
BIAS_TABLE = "attn.relative_position_bias_table"
# Names of the network -> the value that makes the computation the same as without them.
NEUTRAL: tuple[tuple[str, float], ...] = (
    ("blocks.*.ls[12].gamma", 1.0),
    ("blocks.*.attn.qkv.bias", 0.0),
    ("blocks.*.attn.qkv.[qv]_bias", 0.0),
    ("patch_embed.proj.bias", 0.0),
)
# What to change in a config when a tensor has no place, or none for it is found.
HINTS: tuple[tuple[str, str], ...] = (
    ("norm_pre.*", "pre_norm_eps"),
    ("*.mlp.norm.*", "sub_norms"),
    ("*.attn.norm.*", "sub_norms"),
    ("*.mlp.fc1_*", "mlp"),
    ("*.mlp.fc[12].*", "mlp_ratio or mlp"),
    ("*.attn.qkv.*bias", "qkv_bias"),
    ("*.relative_position_bias_table", "use_rel_pos_bias"),
    ("prefix_tokens", "num_prefix_tokens"),
    ("blocks.*", "embed_dim or depth"),
    ("patch_embed.*", "embed_dim or in_chans"),
)


def hint(name: str) -> str:
    """The argument of the network that decides about a tensor."""
    argument = next((a for pattern, a in HINTS if fnmatch.fnmatchcase(name, pattern)), None)
    return f" (see {argument})" if argument else ""


class ViTFitting:
    """Fits a pretraining to a ViT, tensor by tensor; the ViT is not changed.

    Args:
        conversion: the weights by the names here.
        computes: what the pretraining computes, where that is not the plain ViT's.
        vit: the ViT, of which only shapes count: it may be on the meta device.

    Attributes:
        tensors: by the ViT's names, in its shapes.
        neutral: names set to what changes nothing.
        problems: everything that does not fit, as (name, what is wrong).
    """

    def __init__(self, conversion: Conversion, computes: Mapping[str, Any], vit: ViT) -> None:
        self.tensors: dict[str, Tensor] = {}
        self.neutral: list[str] = []
        self.problems: list[tuple[str, str]] = []
        self._left = dict(conversion.tensors)
        self._own = vit.state_dict()
        self._class_row = vit.pretrain_use_cls_token
        self._status: dict[str, tuple[Status, str, str]] = {}
        self._given = set(self._left)
        self._check_computation(computes, vit.computation)
        self._fit_patch_embed()
        self._fit_positions()
        self._fit_prefix_tokens()
        for i in sorted({name.split(".")[1] for name in self._left if name.startswith("blocks.")}):
            self._fit_qkv_bias(f"blocks.{i}.attn.qkv.")
            self._fit_layer_scale(f"blocks.{i}.")
            self._fit_table(f"blocks.{i}.{BIAS_TABLE}")
        for name in list(self._left):
            self._load(name, self._left.pop(name))
        self._fill_neutral()
        self.log = [self._entry(entry) for entry in conversion.log]

    def _check_computation(self, computes: Mapping[str, Any], own: Mapping[str, Any]) -> None:
        """What shapes do not show."""
        expected = {**PLAIN, **computes}
        if "blocks.0.mlp.fc1_g.weight" in self._left:
            expected["mlp"] = "swiglu"
        kernel = self._left.get("patch_embed.proj.weight")
        if kernel is not None and kernel.ndim and len(kernel) in HEADS:
            expected.setdefault("num_heads", HEADS[len(kernel)])
        for name, value in expected.items():
            if own[name] != value:
                self._problem(name, f"the weights need {value!r}, the network has {own[name]!r}")

    def _fit_patch_embed(self) -> None:
        """The patch kernel, resampled to the network's size."""
        name = "patch_embed.proj.weight"
        kernel, own = self._left.pop(name, None), self._own[name]
        if kernel is None:
            return
        sizes = " to ".join("x".join(map(str, t.shape[2:])) for t in (kernel, own))
        if kernel.shape[:2] == own.shape[:2] and kernel.ndim == 4 and kernel.shape != own.shape:
            kernel = resample_patch_embed(kernel, list(own.shape[2:]))
            note = f"kernels of {sizes} (pseudo-inverse of bicubic)"
            self._load(name, kernel, "resampled", note)
        else:
            self._load(name, kernel)

    def _fit_positions(self) -> None:
        """The position table, resampled to the network's grid, and its row of the class token."""
        name, row = "pos_embed", "pos_embed.class_row"
        table, class_row = self._left.pop(name, None), self._left.pop(row, None)
        own = self._own.get(name)
        if table is None or own is None:
            if table is not None:
                self._problem(name, "the network has no position table: use_abs_pos=True")
            elif own is not None:
                self._problem(name, "the pretraining has no position table: use_abs_pos=False")
            return
        old, new = (math.isqrt(n) for n in (table.shape[1], own.shape[1] - self._class_row))
        status: Status = "loaded"
        note = ""
        if old != new:
            table = resample_abs_pos_embed(table, [new, new], [old, old], num_prefix_tokens=0)
            status = "resampled"
            note = f"positions of {old}x{old} to {new}x{new} (bicubic, antialiased)"
        if self._class_row:
            first_row = table.new_zeros(1, 1, table.shape[2]) if class_row is None else class_row
            table = torch.cat([first_row.to(table.dtype), table], dim=1)
        self._load(name, table, status, note)
        if class_row is not None:
            kept = name if self._class_row else "prefix_tokens"
            self._status[row] = (
                ("loaded", "of the class token", kept)
                if kept in self._own
                else ("not used", "the network has no class token", row)
            )

    def _fit_prefix_tokens(self) -> None:
        """Class and register tokens: all or none."""
        name = "prefix_tokens"
        tokens, own = self._left.pop(name, None), self._own.get(name)
        if tokens is None:
            return
        if own is None:
            reason = "left out as in the released models (num_prefix_tokens=0)"
            self._status[name] = ("not used", reason, name)
        elif own.shape[1] != tokens.shape[1]:
            self._problem(
                name,
                f"num_prefix_tokens={own.shape[1]}, but the pretraining has {tokens.shape[1]} "
                "(0 leaves them out, as the released models do)",
            )
        else:
            self._load(name, tokens)

    def _fit_qkv_bias(self, qkv: str) -> None:
        """One bias of q, k and v here, two of q and v there; or the reverse."""
        fused, apart = f"{qkv}bias", [f"{qkv}{part}_bias" for part in "qv"]
        if all(name in self._left for name in apart) and fused in self._own:
            q, v = (self._left.pop(name) for name in apart)
            self._load(fused, torch.cat([q, torch.zeros_like(q), v]), sources=apart)
        elif fused in self._left and all(name in self._own for name in apart):
            bias = self._left.pop(fused)
            q, k, v = bias.chunk(3) if bias.ndim == 1 and len(bias) % 3 == 0 else [bias] * 3
            if k.any():
                self._problem(fused, "the pretraining has a bias of k: qkv_bias='qkv'")
                return
            for name, part in zip(apart, (q, v), strict=True):
                self._load(name, part, note="k's bias is zero and left out", sources=[fused])

    def _fit_layer_scale(self, block: str) -> None:
        """Where the network has no layer scale, it is multiplied into the layer before it."""
        for scale, layer in (("ls1.gamma", "attn.proj"), ("ls2.gamma", "mlp.fc2")):
            name = block + scale
            if name not in self._left or name in self._own:
                continue
            gamma = self._left.pop(name)
            for part, factor in (("weight", gamma[:, None]), ("bias", gamma)):
                target = f"{block}{layer}.{part}"
                if target in self._left:
                    self._left[target] = self._left[target] * factor
            self._status[name] = ("loaded", f"multiplied into {layer}", f"{block}{layer}.weight")

    def _fit_table(self, name: str) -> None:
        """A block's table of relative positions: with or without class rows, of another window."""
        table, own = self._left.get(name), self._own.get(name)
        if table is None or own is None or table.ndim != 2 or table.shape[1] != own.shape[1]:
            return  # loaded, or a problem, as any other
        del self._left[name]
        rows, notes = len(table), []
        has_class, keeps_class = (math.isqrt(len(t)) ** 2 != len(t) for t in (table, own))
        if has_class and not keeps_class:
            table = table[:-CLASS_ROWS]
            notes.append("without the rows of the class token")
        elif keeps_class and not has_class:
            self._problem(name, "the table has no rows of a class token: num_prefix_tokens=0")
            return
        side, own_side = (math.isqrt(len(t) - CLASS_ROWS * keeps_class) for t in (table, own))
        if side**2 + CLASS_ROWS * keeps_class != len(table):
            self._problem(name, f"{rows} rows are of no square window")
            return
        status: Status = "loaded"
        if side != own_side:
            window = ((own_side + 1) // 2,) * 2
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, about timm's code
                table = resize_rel_pos_bias_table(table, window, tuple(own.shape))
            status = "resampled"
            sizes = f"window {(side + 1) // 2} to {window[0]}"
            notes.append(f"{sizes} (linear between BEiT's geometric steps)")
        self._load(name, table, status, "; ".join(notes))

    def _load(
        self,
        name: str,
        tensor: Tensor,
        status: Status = "loaded",
        note: str = "",
        sources: Sequence[str] = (),
    ) -> None:
        """Takes a tensor for the ViT, or notes why not."""
        own = self._own.get(name)
        if own is None:
            self._problem(name, f"the network has no such tensor{hint(name)}")
        elif not tensor.is_floating_point():
            self._problem(name, f"{tensor.dtype} is no type of weights")
        elif tensor.shape != own.shape:
            shapes = f"{tuple(tensor.shape)} in the pretraining, {tuple(own.shape)} in the network"
            self._problem(name, f"{shapes}{hint(name)}")
        else:
            self.tensors[name] = tensor
            for source in sources or [name]:
                self._status[source] = (status, note, name)

    def _fill_neutral(self) -> None:
        """What the network has and the family has not."""
        for name, own in self._own.items():
            if name in self.tensors or any(name == n for n, _ in self.problems):
                continue
            value = next((v for p, v in NEUTRAL if fnmatch.fnmatchcase(name, p)), None)
            if value is None or self._is_in_other_blocks(name):
                self._problem(name, f"not in the pretraining{hint(name)}")
            else:
                dtype = next(iter(self.tensors.values())).dtype if self.tensors else own.dtype
                self.tensors[name] = torch.full(own.shape, value, dtype=dtype)
                self.neutral.append(name)

    def _is_in_other_blocks(self, name: str) -> bool:
        """Whether the pretraining has the tensor in another block, so that here it got lost."""
        inner = re.sub(r"^blocks\.\d+\.", "", name)
        return inner != name and any(n.split(".", 2)[-1] == inner for n in self._given)

    def _problem(self, name: str, what: str) -> None:
        self.problems.append((name, what))

    def _entry(self, entry: Entry) -> Entry:
        """The line of the log about some elements, now that their place is known."""
        if entry.status == "not used":
            return entry
        reason = dict(self.problems).get(entry.target, "no place for it")
        otherwise: tuple[Status, str, str] = ("not used", f"allowed: {reason}", entry.target)
        status, note, target = self._status.get(entry.target, otherwise)
        notes = "; ".join(text for text in (entry.note, note) if text)
        return replace(entry, status=status, note=notes, target=target)


def check_types(conversion: Conversion) -> None:
    """Raises WeightsError if something other than floating-point numbers is to be loaded."""
    for entry in conversion.log:
        if entry.status == "loaded" and entry.dtype and not entry.dtype.is_floating_point:
            raise WeightsError(
                f"{conversion.title}: '{entry.source}' is of {entry.dtype}, no type of weights"
            )
