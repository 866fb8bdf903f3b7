"""A pretraining's weights -> the ViT branch at hand: resampled where sizes differ, or refused."""

import fnmatch
import math
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed, resize_rel_pos_bias_table
from torch import Tensor, nn

from ..network.vit_attention import CLASS_ROWS
from .files import WeightsError, first
from .ledger import PLAIN_COMPUTATION, Pretraining
from .report import Entry, LoadReport

# Heads of the usual widths; a ViT with another number would load and compute something else.
HEADS = {192: 3, 384: 6, 512: 8, 768: 12, 896: 14, 1024: 16}
TABLE = ".attn.relative_position_bias_table"
# Names of the network -> the value that makes the computation the same as without them.
NEUTRAL: tuple[tuple[str, float], ...] = (
    ("blocks.*.ls[12].gamma", 1.0),
    ("blocks.*.attn.qkv.bias", 0.0),
    ("blocks.*.attn.qkv.[qv]_bias", 0.0),
    ("blocks.*.attn.rel_pos_[hw]", 0.0),  # of Detectron2's own ViT
    ("patch_embed.proj.bias", 0.0),
)


@dataclass
class Fitted:
    """What to load into a branch.

    Args:
        tensors: by the branch's names, in the branch's shapes.
        status: name of a pretraining's tensor -> "loaded", "resampled" or "not used", and a note.
        neutral: names set to what changes nothing.
        problems: everything that does not fit, as (name, what is wrong).
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    status: dict[str, tuple[str, str]] = field(default_factory=dict)
    neutral: list[str] = field(default_factory=list)
    problems: list[tuple[str, str]] = field(default_factory=list)


def computation_of(branch: nn.Module) -> dict[str, Any]:
    """How a ViT branch computes: this network's, or Detectron2's own plain ViT."""
    if hasattr(branch, "computation"):
        return dict(branch.computation)
    block = branch.blocks[0]
    return {
        **PLAIN_COMPUTATION,
        "layer_norm_eps": block.norm1.eps,
        "num_heads": block.attn.num_heads,
    }


class Fitting:
    """Fits a pretraining to a branch, tensor by tensor.

    Args:
        pretraining: the weights.
        branch: a module with ``patch_embed`` and ``blocks``, and the other names of a ViT branch.
    """

    def __init__(self, pretraining: Pretraining, branch: nn.Module) -> None:
        self.pretraining = pretraining
        self.left = dict(pretraining.tensors)
        self.own = branch.state_dict()
        self.class_row = bool(getattr(branch, "pretrain_use_cls_token", False))
        self.computation = computation_of(branch)
        self.result = Fitted()

    def run(self) -> Fitted:
        """Everything; the branch is not changed."""
        self.check_computation()
        self.fit_patch_embed()
        self.fit_positions()
        self.fit_prefix_tokens()
        for i in range(self.pretraining.depth):
            self.fit_qkv_bias(f"blocks.{i}.attn.")
            self.fit_layer_scale(f"blocks.{i}.")
            self.fit_table(f"blocks.{i}{TABLE}")
        for name in list(self.left):
            self.load(name, self.left.pop(name))
        self.fill_neutral()
        return self.result

    def check_computation(self) -> None:
        """What shapes do not show."""
        expected = dict(self.pretraining.computation)
        dim = self.pretraining.embed_dim
        if dim in HEADS:
            expected.setdefault("num_heads", HEADS[dim])
        for name, value in expected.items():
            actual = self.computation.get(name)
            if actual != value:
                self.problem(name, f"the weights need {value!r}, the network has {actual!r}")

    def fit_patch_embed(self) -> None:
        """The patch kernel, resampled to the network's size."""
        name = "patch_embed.proj.weight"
        kernel = self.left.pop(name, None)
        own = self.own.get(name)
        if kernel is None or own is None:
            return
        if (
            kernel.ndim != 4
            or kernel.shape[:2] != own.shape[:2]
            or kernel.shape[2:] == own.shape[2:]
        ):
            self.load(name, kernel)
            return
        resampled = resample_patch_embed(kernel, list(own.shape[2:]))
        sizes = " to ".join("x".join(map(str, t.shape[2:])) for t in (kernel, own))
        self.load(name, resampled, "resampled", f"kernels of {sizes} (pseudo-inverse of bicubic)")

    def fit_positions(self) -> None:
        """The position table, resampled to the network's grid, and its row of the class token."""
        table, class_row = (
            self.left.pop("pos_embed", None),
            self.left.pop("pos_embed.class_row", None),
        )
        own = self.own.get("pos_embed")
        if table is None:
            if own is not None:
                self.problem(
                    "pos_embed", "the pretraining has no position table: use_abs_pos=False"
                )
            return
        if own is None:
            self.problem("pos_embed", "the network has no position table: use_abs_pos=True")
            return
        old, new = (math.isqrt(n) for n in (table.shape[1], own.shape[1] - self.class_row))
        status, note = "loaded", ""
        if old != new:
            table = resample_abs_pos_embed(table, [new, new], [old, old], num_prefix_tokens=0)
            status, note = (
                "resampled",
                f"positions of {old}x{old} to {new}x{new} (bicubic, antialiased)",
            )
        if self.class_row:
            first_row = table.new_zeros(1, 1, table.shape[2]) if class_row is None else class_row
            table = torch.cat([first_row.to(table.dtype), table], dim=1)
        self.load("pos_embed", table, status, note)
        if class_row is not None:
            kept = self.class_row or "prefix_tokens" in self.own
            self.result.status["pos_embed.class_row"] = (
                ("loaded", "of the class token")
                if kept
                else ("not used", "the network has no class token")
            )

    def fit_prefix_tokens(self) -> None:
        """Class and register tokens: all or none."""
        tokens = self.left.pop("prefix_tokens", None)
        if tokens is None:
            return
        if "prefix_tokens" in self.own:
            own = self.own["prefix_tokens"].shape[1]
            if own != tokens.shape[1]:
                self.problem(
                    "prefix_tokens",
                    f"num_prefix_tokens={own}, but the pretraining has {tokens.shape[1]} "
                    "(0 leaves them out, as the released models do)",
                )
                return
            self.load("prefix_tokens", tokens)
        else:
            reason = "left out as in the released models (num_prefix_tokens=0)"
            self.result.status["prefix_tokens"] = ("not used", reason)

    def fit_qkv_bias(self, attn: str) -> None:
        """One bias of q, k and v here, two of q and v there."""
        names = [attn + "qkv.q_bias", attn + "qkv.v_bias"]
        fused = attn + "qkv.bias"
        if all(name in self.left for name in names) and fused in self.own:
            q, v = (self.left.pop(name) for name in names)
            self.load(fused, torch.cat([q, torch.zeros_like(q), v]), sources=names)
        elif fused in self.left and all(name in self.own for name in names):
            q, k, v = self.left[fused].chunk(3)
            if k.any():
                self.problem(fused, 'the pretraining has a bias of k: qkv_bias="qkv"')
                return
            del self.left[fused]
            for name, part in zip(names, (q, v), strict=True):
                self.load(name, part, note="k's bias is zero and left out", sources=[fused])

    def fit_layer_scale(self, block: str) -> None:
        """Where the network has no layer scale, it is multiplied into the layer before it."""
        for scale, layer in (("ls1.gamma", "attn.proj"), ("ls2.gamma", "mlp.fc2")):
            name = block + scale
            if name not in self.left or name in self.own:
                continue
            gamma = self.left.pop(name)
            for part in ("weight", "bias"):
                target = f"{block}{layer}.{part}"
                if target in self.left:
                    factor = gamma[:, None] if part == "weight" else gamma
                    self.left[target] = self.left[target] * factor
            self.result.status[name] = ("loaded", f"multiplied into {layer}")

    def fit_table(self, name: str) -> None:
        """A block's table of relative positions: with or without class rows, of another window."""
        table, own = self.left.pop(name, None), self.own.get(name)
        if table is None or own is None:
            if table is not None:
                self.left[name] = table
            return
        if table.ndim != 2 or table.shape[1] != own.shape[1]:
            self.load(name, table)  # a problem: the number of heads
            return
        rows, note = table.shape[0], []
        has_class = math.isqrt(rows) ** 2 != rows
        keeps_class = math.isqrt(own.shape[0]) ** 2 != own.shape[0]
        if has_class and not keeps_class:
            table = table[:-CLASS_ROWS]
            note.append("without the rows of the class token")
        elif keeps_class and not has_class:
            self.problem(name, "the table has no rows of a class token: num_prefix_tokens=0")
            return
        side, own_side = (math.isqrt(t.shape[0] - CLASS_ROWS * keeps_class) for t in (table, own))
        if side**2 + CLASS_ROWS * keeps_class != table.shape[0]:
            self.problem(name, f"{rows} rows are of no square window")
            return
        status = "loaded"
        if side != own_side:
            window = ((own_side + 1) // 2,) * 2
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's, about timm's code
                table = resize_rel_pos_bias_table(table, window, tuple(own.shape))
            status = "resampled"
            note.append(
                f"window {(side + 1) // 2} to {window[0]} (linear between BEiT's geometric steps)"
            )
        self.load(name, table, status, "; ".join(note))

    def load(
        self,
        name: str,
        tensor: Tensor,
        status: str = "loaded",
        note: str = "",
        sources: Sequence[str] = (),
    ) -> None:
        """Takes a tensor for the branch, or writes down why not."""
        own = self.own.get(name)
        if own is None:
            self.problem(name, f"the network has no such tensor{hint(name)}")
        elif not tensor.is_floating_point():
            self.problem(name, f"{tensor.dtype} is no type of weights")
        elif tensor.shape != own.shape:
            shapes = f"{tuple(tensor.shape)} in the pretraining, {tuple(own.shape)} in the network"
            self.problem(name, f"{shapes}{hint(name)}")
        else:
            self.result.tensors[name] = tensor
            for source in sources or [name]:
                self.result.status[source] = (status, note)

    def fill_neutral(self) -> None:
        """What the network has and the family has not."""
        for name, own in self.own.items():
            if name in self.result.tensors or any(name == n for n, _ in self.result.problems):
                continue
            value = next((v for p, v in NEUTRAL if fnmatch.fnmatchcase(name, p)), None)
            if value is None or self.is_in_other_blocks(name):
                self.problem(name, f"not in the pretraining{hint(name)}")
            else:
                self.result.tensors[name] = torch.full_like(own, value)
                self.result.neutral.append(name)

    def is_in_other_blocks(self, name: str) -> bool:
        """Whether the pretraining has the tensor in another block, so that here it got lost."""
        inner = re.sub(r"^blocks\.\d+\.", "", name)
        given = self.pretraining.tensors
        return inner != name and any(n.split(".", 2)[-1] == inner for n in given)

    def problem(self, name: str, what: str) -> None:
        """Writes down what does not fit."""
        self.result.problems.append((name, what))


def is_of_branch(name: str) -> bool:
    """Whether a name of the network is of its ViT branch."""
    return name.removeprefix("vit.").split(".")[0] in (
        "patch_embed",
        "pos_embed",
        "prefix_tokens",
        "norm_pre",
        "blocks",
    )


# What to change in a config when a tensor has no place, or none for it is found.
HINTS: tuple[tuple[str, str], ...] = (
    ("norm_pre.*", "pre_norm_eps"),
    ("*.mlp.norm.*", "sub_norms"),
    ("*.attn.norm.*", "sub_norms"),
    ("*.mlp.fc1_*", "mlp"),
    ("*.mlp.fc[12].*", "mlp_ratio or mlp"),
    ("*.attn.qkv.[qv]_bias", "qkv_bias"),
    ("*.attn.qkv.bias", "qkv_bias"),
    ("*.relative_position_bias_table", "use_rel_pos_bias"),
    ("prefix_tokens", "num_prefix_tokens"),
    ("blocks.*", "embed_dim or depth"),
    ("patch_embed.*", "embed_dim or in_chans"),
)


def hint(name: str) -> str:
    """The argument of the network that decides about a tensor."""
    argument = next((a for pattern, a in HINTS if fnmatch.fnmatchcase(name, pattern)), None)
    return f": see {argument}" if argument else ""


Allowed = Callable[[str], bool]


def allowed_by(patterns: Sequence[str]) -> Allowed:
    """Whether a name matches one of the shell patterns."""
    return lambda name: any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def refuse_problems(
    pretraining: Pretraining, fitted: Fitted, source: str, is_allowed: Allowed
) -> None:
    """Raises WeightsError for everything that does not fit and is not allowed to."""
    wrong = [
        (name, "not a tensor of this family") for name in pretraining.unexpected
    ] + fitted.problems
    wrong = [(name, what) for name, what in wrong if not is_allowed(name)]
    if not wrong and fitted.tensors:
        return
    kinds: dict[str, list[str]] = {}
    for name, what in wrong:
        kinds.setdefault(what, []).append(name)
    lines = [f"{first(names, 4)}: {what}" for what, names in kinds.items()]
    listed = "".join(f"\n  {line}" for line in lines[:8])
    more = f"\n  ... and {len(lines) - 8} more" if len(lines) > 8 else ""
    raise WeightsError(
        f"{source} ({pretraining.family}) does not fit the network:{listed}{more}\n  Nothing was "
        "loaded. Change these arguments of the network, or allow the names (allow=...; in a "
        "config, train.init_allow)"
    )


def report_of(
    pretraining: Pretraining,
    fitted: Fitted,
    source: str,
    own: Mapping[str, Tensor],
) -> LoadReport:
    """The account of a load.

    Args:
        pretraining: what was loaded.
        fitted: how.
        source: from where.
        own: the network's state dict.
    """
    problems = dict(fitted.problems)
    report = LoadReport(source, pretraining.family)
    for part in pretraining.parts:
        if part.target is None:
            report.entries.append(
                Entry(part.source, part.elements, "not used", part.source, part.note)
            )
            continue
        status, note = fitted.status.get(part.target, ("not used", ""))
        if part.target not in fitted.status:
            note = f"allowed: {problems.get(part.target, 'no place for it')}"
        notes = "; ".join(text for text in (part.note, note) if text)
        report.entries.append(Entry(part.source, part.elements, status, part.target, notes))
    report.neutral = {name: own[name].numel() for name in fitted.neutral}
    report.fresh = {
        name: tensor.numel()
        for name, tensor in own.items()
        if name not in fitted.tensors and tensor.is_floating_point()
    }
    return report
