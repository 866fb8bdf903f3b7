"""The authors' ViT-CoMer backbone: their names <-> the names here.

One table serves both directions. Numbers of blocks, interactions and extra blocks stand as ``#``.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..network.vit_attention import relative_position_index
from .files import WeightsError, check_finite, first
from .ledger import Ledger, Pretraining
from .sizes import check_whole, sized_network

TITLE = "the authors' ViT-CoMer backbone"
LEAVES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def under(official: str, here: str, table: Mapping[str, str]) -> dict[str, str]:
    """A table of names with a prefix on both sides."""
    return {f"{official}{old}": f"{here}{new}" for old, new in table.items()}


def same(*names: str) -> dict[str, str]:
    """A table of names that are the same on both sides."""
    return {name: name for name in names}


# The CNN stem numbers convolutions, norms and activations through; here each triple is one item.
STEM = {
    **{f"spm.stem.{3 * i + j}": f"pyramid.stem.{i}.{j}" for i in range(3) for j in range(2)},
    **{f"spm.conv{i + 2}.{j}": f"pyramid.downsample.{i}.{j}" for i in range(3) for j in range(2)},
    **{f"spm.fc{i + 1}": f"pyramid.proj.{i}" for i in range(4)},
}
BLOCK = same("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") | {
    "gamma1": "ls1.gamma",
    "gamma2": "ls2.gamma",
}
BEIT_BLOCK = {
    "attn.q_bias": "attn.qkv.q_bias",
    "attn.v_bias": "attn.qkv.v_bias",
    **same("attn.relative_position_bias_table"),
}
# Their two layers of offsets and weights are one here: see `join_sampling`.
ATTENTION = same("attn.sampling", "attn.value_proj", "attn.output_proj")
# MRFP's six depthwise convolutions are three levels of two kernels, numbered level by level.
MRFP = {
    **same("fc1", "fc2"),
    **{f"dwconv.dwconv{2 * i + j + 1}": f"convs.{i}.{j}" for i in range(3) for j in range(2)},
    **{f"dwconv.bn{i + 1}": f"norms.{i}" for i in range(3)},
}
FFN = {
    "ffn_norm": "ffn.norm",
    "ffn.fc1": "ffn.ffn.fc1",
    "ffn.dwconv.dwconv": "ffn.ffn.dwconv",
    "ffn.fc2": "ffn.ffn.fc2",
}
NORMS = same("query_norm", "feat_norm")
CTI_TO_C = {
    "query_norm": "feature_interaction.outer_query_norm",
    "feat_norm": "feature_interaction.outer_feat_norm",
    **under("cfinter.", "feature_interaction.", NORMS | ATTENTION | FFN),
}
INTERACTION = {
    **under("mrfp.", "mrfp.", MRFP),
    **under("cti_tov.", "cti_to_v.", same("gamma") | NORMS | ATTENTION | FFN),
    **under("cti_toc.", "cti_to_c.", CTI_TO_C),
    **under("extra_CTIs.#.", "extra_cti.#.", FFN | CTI_TO_C),
}
BACKBONE = {
    **same("level_embed"),
    **under("", "vit.", same("pos_embed", "patch_embed.proj")),
    **STEM,
    **under("blocks.#.", "vit.blocks.#.", BLOCK),
    **under("interactions.#.", "interactions.#.", INTERACTION),
    "up": "upsample",
    **{f"norm{i + 1}": f"out_norms.{i}" for i in range(4)},
}
# What the BEiT variant calls the same parts.
BEIT_NAMES = (
    ("#.mrfp.", "#.multiconv."),
    ("#.cti_tov.", "#.injector."),
    ("#.cti_toc.", "#.extractor."),
    ("#.extra_CTIs.", "#.extra_extractors."),
    ("#.gamma1", "#.gamma_1"),
    ("#.gamma2", "#.gamma_2"),
)


def beit_name(name: str) -> str:
    """A name of the table -> the BEiT variant's."""
    for old, new in BEIT_NAMES:
        name = name.replace(old, new)
    return name


BEIT_BACKBONE = {
    **{beit_name(old): new for old, new in BACKBONE.items()},
    **under("blocks.#.", "vit.blocks.#.", BEIT_BLOCK),
}
OFFICIAL_TO_HERE = BACKBONE | BEIT_BACKBONE
HERE_TO_OFFICIAL = {new: old for old, new in BACKBONE.items()}
HERE_TO_BEIT = {new: old for old, new in BEIT_BACKBONE.items()}
NUMBERED = re.compile(
    r"(?<![^.])(blocks|interactions|extra_CTIs|extra_extractors|extra_cti)\.(\d+)(?=\.)"
)
INDEX = ".attn.relative_position_index"
OUTER_NORM = re.compile(
    r"(interactions\.\d+\.(?:(?:extra_CTIs|extra_extractors)\.\d+|cti_toc|extractor))\."
    r"(?:query|feat)_norm\.(?:weight|bias)"
)
UNUSED_NORM = (
    "the authors' network creates this norm and never uses it (no cnn_feature_interaction)"
)


def translate(name: str, table: Mapping[str, str]) -> str | None:
    """One name by a table; ``None`` if the table does not have it."""
    numbers = iter(NUMBERED.findall(name))
    numbered = NUMBERED.sub(r"\1.#", name)
    module, _, leaf = numbered.rpartition(".")
    if numbered in table:
        new = table[numbered]
    elif leaf in LEAVES and module in table:
        new = f"{table[module]}.{leaf}"
    else:
        return None
    return re.sub("#", lambda _: next(numbers)[1], new)


def join_sampling(ledger: Ledger, rename: Callable[[str], str | None]) -> None:
    """Offsets and weights of deformable attentions, two layers elsewhere, as the one here.

    Args:
        ledger: of the source.
        rename: a name with ``sampling`` for the two -> the name here, or ``None``.
    """
    for name in [name for name in ledger.left if ".sampling_offsets." in name]:
        target = rename(name.replace(".sampling_offsets.", ".sampling."))
        if target is not None:
            pair = name.replace(".sampling_offsets.", ".attention_weights.")
            ledger.concatenate([name, pair], target)


def split_sampling(ledger: Ledger, rename: Callable[[str], str | None]) -> None:
    """The inverse of :func:`join_sampling`: two thirds are offsets."""
    for name in [name for name in ledger.left if ".attn.sampling." in name]:
        target = rename(name)
        tensor = ledger.left[name]
        if target is None or tensor.ndim == 0 or len(tensor) % 3:
            continue
        ledger.take(name)
        parts = tensor.split([2 * len(tensor) // 3, len(tensor) // 3])
        for part, kind in zip(parts, ("sampling_offsets", "attention_weights"), strict=True):
            ledger.put(target.replace(".sampling.", f".{kind}."), part)
            ledger.note(name, part.numel(), target.replace(".sampling.", f".{kind}."))


def is_official(names: Iterable[str]) -> bool:
    """Whether a state dict has the authors' backbone in it, alone or under ``backbone.``."""
    return any(
        re.match(r"(backbone\.)?(spm\.|interactions\.\d+\.(mrfp|multiconv)\.dwconv\.)", name)
        for name in names
    )


def convert_official(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turns a state dict of the authors' backbone into one that loads strictly here.

    It only renames and drops, so it converts a dict of gradients just as well: that nothing is
    missing, a strict load has to say, or :func:`official_backbone`. Dropped are BEiT's relative
    position indices (computed here) and the norms of CTI to C where the authors' network creates
    but never uses them (no ``cnn_feature_interaction``).

    Args:
        state_dict: tensors by the authors' names: bare, under ``backbone.`` (other prefixes are
            then another part's and are left out), or a checkpoint with these in its
            ``state_dict`` or ``model``.

    Returns:
        Tensors by the names of :class:`comer_d2.ViTCoMer`; they share memory with the given ones.

    Raises:
        WeightsError: if a name is not one of the authors' backbone, or there is none.
    """
    return rename_backbone(state_dict).tensors


def official_backbone(state_dict: Mapping[str, Any]) -> Pretraining:
    """As :func:`convert_official`, for a whole checkpoint: with its books, and nothing missing.

    Raises:
        WeightsError: also for names that are missing, shapes that do not fit together, and values
            that are not finite.
    """
    result = rename_backbone(state_dict)
    check_finite(result.tensors, result.family)
    check_whole(result.tensors, sized_network(result.tensors).state_dict(), result.family)
    return result


def rename_backbone(state_dict: Mapping[str, Any]) -> Pretraining:
    """The backbone by the names here, and where everything else went."""
    inner, prefix, outside = find_backbone(state_dict)
    attending = {name.split(".cfinter.")[0] for name in inner if ".cfinter." in name}
    ledger = Ledger(inner, TITLE)
    join_sampling(ledger, lambda name: translate(name, OFFICIAL_TO_HERE))
    for name in list(ledger.left):
        outer = OUTER_NORM.fullmatch(name)
        if name.endswith(INDEX):
            check_index(prefix + name, inner[name])
            ledger.drop([(re.escape(name), "computed here")])
        elif outer and outer[1] not in attending:
            ledger.drop([(re.escape(name), UNUSED_NORM)])
        elif new_name := translate(name, OFFICIAL_TO_HERE):
            ledger.move(name, new_name)
    if ledger.left:
        raise WeightsError(
            f"{first(list(map(repr, ledger.left)))} is not a tensor of the authors' ViT-CoMer "
            "backbone: is this checkpoint of another model? (A plain ViT is not one.)"
        )
    ledger.result.parts = [replace(p, source=prefix + p.source) for p in ledger.result.parts]
    for name, tensor in outside.items():
        ledger.note(name, tensor.numel(), None, "not of the backbone")
    return ledger.result


def find_backbone(state_dict: Mapping[str, Any]) -> tuple[dict[str, Tensor], str, dict]:
    """The backbone's tensors by their bare names, the prefix that they had, and the others.

    Raises:
        WeightsError: if there is no backbone of the authors.
    """
    state_dict = without_wrapper(state_dict)
    prefix = "backbone." if any(name.startswith("backbone.") for name in state_dict) else ""
    inner = {n.removeprefix(prefix): t for n, t in state_dict.items() if n.startswith(prefix)}
    if not any(name.startswith("interactions.") for name in inner):
        raise WeightsError(
            "no 'interactions.*' tensors: this is not a state dict of the authors' ViT-CoMer "
            f"(its first names: {list(state_dict)[:5]})"
        )
    outside = {n: t for n, t in state_dict.items() if not n.startswith(prefix)}
    return inner, prefix, outside


def without_wrapper(state_dict: Mapping[str, Any]) -> Mapping[str, Tensor]:
    """The state dict out of the checkpoint that it may be in."""
    for wrapper in ("state_dict", "model"):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    return state_dict


def check_index(name: str, index: Tensor) -> None:
    """Raises WeightsError if stored relative positions are not those that are computed here."""
    side = math.isqrt(index.shape[0]) if index.ndim else 0
    if side == 0 or not torch.equal(index.long(), relative_position_index(side, side)):
        raise WeightsError(
            f"'{name}' of shape {tuple(index.shape)} is not the relative positions of a square "
            "window, row by row, as this network computes them"
        )


def to_official(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of :func:`convert_official`: a backbone of this project by the authors' names.

    With relative positions it takes the names of their BEiT variant. Norms that their network
    creates but never uses are added at their initial values, and relative position indices as they
    are computed. (An interaction without CTI to C also gets such norms: they are not used either.)

    Args:
        state_dict: tensors by the names of :class:`comer_d2.ViTCoMer`, all of them.

    Returns:
        Tensors by the authors' bare names; they share memory with the given ones.

    Raises:
        WeightsError: for what the authors' network does not have: prefix tokens, gated MLPs, MRFP
            without CTI to V, other kernels; or if tensors are missing, of other shapes or not
            finite.
    """
    is_beit = any(name.endswith(".relative_position_bias_table") for name in state_dict)
    table = HERE_TO_BEIT if is_beit else HERE_TO_OFFICIAL
    ledger = Ledger(state_dict, "the backbone")
    split_sampling(ledger, lambda name: translate(name, table))
    for name in list(ledger.left):
        if old_name := translate(name, table):
            ledger.move(name, old_name)
    if ledger.left:
        raise WeightsError(f"the authors' ViT-CoMer has no {first(list(map(repr, ledger.left)))}")
    check_finite(state_dict, "the backbone")
    check_whole(state_dict, sized_network(state_dict).state_dict(), "the backbone")
    official = ledger.result.tensors
    check_expressible(official)
    return official | unused_norms(official, is_beit) | indices(official)


def check_expressible(official: Mapping[str, Tensor]) -> None:
    """Raises WeightsError for networks that the authors' constructor cannot make."""
    parts = {".".join(n.split(".")[:3]) for n in official if n.startswith("interactions.")}
    for i in sorted({int(part.split(".")[1]) for part in parts}):
        mrfp, to_v = (
            any(f"interactions.{i}.{name}" in parts for name in names)
            for names in (("mrfp", "multiconv"), ("cti_tov", "injector"))
        )
        if mrfp != to_v:
            raise WeightsError(
                f"interaction {i} has only one of MRFP and CTI to V: the authors' network has both "
                "or neither"
            )


def unused_norms(official: Mapping[str, Tensor], is_beit: bool) -> dict[str, Tensor]:
    """The outer norms of every CTI to C without feature interaction, as initialised."""
    to_c, extra = ("extractor", "extra_extractors") if is_beit else ("cti_toc", "extra_CTIs")
    count = 1 + max(int(n.split(".")[1]) for n in official if n.startswith("interactions."))
    blocks = [f"interactions.{i}.{to_c}" for i in range(count)]
    blocks += sorted({".".join(n.split(".")[:4]) for n in official if f".{extra}." in n})
    like = official["level_embed"][0]
    values = {"weight": torch.ones_like(like), "bias": torch.zeros_like(like)}
    return {
        f"{block}.{norm}.{leaf}": value.clone()
        for block in blocks
        for norm in ("query_norm", "feat_norm")
        for leaf, value in values.items()
        if f"{block}.{norm}.{leaf}" not in official
    }


def indices(official: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """BEiT's relative position index beside every table."""
    tables = {n: t for n, t in official.items() if n.endswith(".relative_position_bias_table")}
    sides = {n.rsplit(".attn.", 1)[0]: (math.isqrt(len(t)) + 1) // 2 for n, t in tables.items()}
    return {block + INDEX: relative_position_index(w, w) for block, w in sides.items()}
