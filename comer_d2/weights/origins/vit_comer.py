"""The authors' ViT-CoMer backbone, and its BEiT variant in their Co-DETR branch.

Two parts have no place here. BEiT's relative position indices are computed; and where an interaction
has no ``cnn_feature_interaction``, the authors' network creates norms that it never uses.
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from ...network.vit_attention import relative_position_index
from ..conversion import Conversion, Layout, Names, Origin, same, under
from ..files import WeightsError
from ..vit_steps import COMPUTED

# The CNN stem numbers convolutions, norms and activations through; here each triple is one item.
STEM: dict[Names, Names] = {
    **{f"spm.stem.{3 * i + j}": f"pyramid.stem.{i}.{j}" for i in range(3) for j in range(2)},
    **{f"spm.conv{i + 2}.{j}": f"pyramid.downsample.{i}.{j}" for i in range(3) for j in range(2)},
    **{f"spm.fc{i + 1}": f"pyramid.projections.{i}" for i in range(4)},
}
BLOCK = same("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2") | {
    "gamma1": "ls1.gamma",
    "gamma2": "ls2.gamma",
}
BEIT_BLOCK = same("attn.relative_position_bias_table") | {
    f"attn.{part}_bias": f"attn.qkv.{part}_bias"
    for part in "qv"
}  # fmt: skip
SAMPLING = "attn.sampling"
ATTENTION = same("attn.value_proj", "attn.output_proj") | {
    ("attn.sampling_offsets", "attn.attention_weights"): SAMPLING
}
# MRFP's six depthwise convolutions are three levels of two kernels, numbered level by level.
MRFP = same("fc1", "fc2") | {
    **{f"dwconv.dwconv{2 * i + j + 1}": f"convs.{i}.{j}" for i in range(3) for j in range(2)},
    **{f"dwconv.bn{i + 1}": f"norms.{i}" for i in range(3)},
}
FFN: dict[Names, Names] = {
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


def backbone(mrfp: str, to_v: str, to_c: str, extra: str, vit: Mapping[Names, Names]) -> dict:
    """The table, by what the two variants call an interaction's parts."""
    interaction = {
        **under(f"{mrfp}.", "mrfp.", MRFP),
        **under(f"{to_v}.", "cti_to_v.", same("gamma") | NORMS | ATTENTION | FFN),
        **under(f"{to_c}.", "cti_to_c.", CTI_TO_C),
        **under(f"{extra}.#.", "extra_cti.#.", FFN | CTI_TO_C),
    }
    return {
        **under("", "vit.", same("pos_embed", "patch_embed.proj")),
        **under("blocks.#.", "vit.blocks.#.", vit),
        **same("level_embed"),
        **STEM,
        **under("interactions.#.", "interactions.#.", interaction),
        "up": "upsample",
        **{f"norm{i + 1}": f"out_norms.{i}" for i in range(4)},
    }


BEIT = {str(old).replace("gamma", "gamma_"): new for old, new in BLOCK.items()} | BEIT_BLOCK
VARIANTS = (
    backbone("mrfp", "cti_tov", "cti_toc", "extra_CTIs", BLOCK),
    backbone("multiconv", "injector", "extractor", "extra_extractors", BEIT),
)
INDEX = "attn.relative_position_index"
OUTER_NORM = re.compile(
    r"(.*interactions\.\d+\.(?:(?:extra_CTIs|extra_extractors)\.\d+|cti_toc|extractor))\."
    r"(?:query|feat)_norm\.(?:weight|bias)"
)
UNUSED_NORM = (
    "the authors' network creates this norm and never uses it (no cnn_feature_interaction)"
)


def drop_unused(conversion: Conversion) -> None:
    """Norms without use, and relative position indices, if they are those that are computed here."""
    attending = {name.split(".cfinter.")[0] for name in conversion.left if ".cfinter." in name}
    for name, tensor in list(conversion.left.items()):
        outer = OUTER_NORM.fullmatch(name)
        if outer and outer[1] not in attending:
            conversion.drop(name, UNUSED_NORM)
        elif name.endswith(f".{INDEX}"):
            side = math.isqrt(tensor.shape[0]) if tensor.ndim else 0
            if side == 0 or not torch.equal(tensor.long(), relative_position_index(side, side)):
                raise WeightsError(
                    f"'{name}' of shape {tuple(tensor.shape)} is not the relative positions of a "
                    "square window, row by row, as this network computes them"
                )
            conversion.drop(name, COMPUTED)


def complete(official: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds the norms without use at their initial values, and the indices.

    Raises:
        WeightsError: for networks that the authors' constructor cannot make.
    """
    check_expressible(official)
    added = {}
    parts = {match[1] for match in map(CTI_PART.match, official) if match}
    prefix = "backbone." if "backbone.level_embed" in official else ""
    like = official[f"{prefix}level_embed"][0]
    values = {"weight": torch.ones_like(like), "bias": torch.zeros_like(like)}
    is_beit = any(name.endswith(".attn.relative_position_bias_table") for name in official)
    to_c = "extractor" if is_beit else "cti_toc"
    interactions = {match[1] for match in map(INTERACTION.match, official) if match}
    for part in sorted(parts | {f"{interaction}.{to_c}" for interaction in interactions}):
        for norm in ("query_norm", "feat_norm"):
            for leaf, value in values.items():
                if f"{part}.{norm}.{leaf}" not in official:
                    added[f"{part}.{norm}.{leaf}"] = value.clone()
    for name, table in official.items():
        if name.endswith(".relative_position_bias_table"):
            window = (math.isqrt(len(table)) + 1) // 2
            index = relative_position_index(window, window)
            added[name.replace("attn.relative_position_bias_table", INDEX)] = index
    return official | added


INTERACTION = re.compile(r"(.*interactions\.\d+)\.")
CTI_PART = re.compile(r"(.*interactions\.\d+\.(?:extra_CTIs|extra_extractors)\.\d+)\.")


def check_expressible(official: Mapping[str, Tensor]) -> None:
    """Raises WeightsError for MRFP without CTI to V, or the reverse, other kernels and positions."""
    names = " ".join(official)
    if ".attn.q_bias" in names and "relative_position_bias_table" not in names:
        raise WeightsError(
            "the ViT has no bias of k and no relative positions: the authors' has both or neither"
        )
    for i in sorted({match[1] for match in map(INTERACTION.match, official) if match}):
        mrfp, to_v = (
            any(name.startswith(tuple(f"{i}.{n}." for n in names)) for name in official)
            for names in (("mrfp", "multiconv"), ("cti_tov", "injector"))
        )
        if mrfp != to_v:
            raise WeightsError(
                f"'{i}' has only one of MRFP and CTI to V: the authors' network has both or neither"
            )
    for name, tensor in official.items():
        kernel = re.fullmatch(r".*\.dwconv\.dwconv([1-6])\.weight", name)
        side = 5 if kernel and int(kernel[1]) % 2 == 0 else 3
        if kernel and tensor.shape[-1] != side:
            raise WeightsError(
                f"'{name}' has a kernel of {tensor.shape[-1]}, the authors' has {side}"
            )
        rows = tensor.shape[1] - 1 if re.fullmatch(r"(backbone\.)?pos_embed", name) else 0
        if math.isqrt(rows) ** 2 != rows:
            raise WeightsError(f"'{name}' has no row of a class token; the authors' has one")


def layout(
    table: Mapping[Names, Names],
    prefix: str = "",
    here: str = "",
    heads: Mapping[Names, Names] | None = None,
    unused: Mapping[str, str] | None = None,
    requires: tuple[str, ...] = (),
) -> Layout:
    """A layout of the backbone under a prefix, with the heads that stand next to it."""
    names = {
        name for pair in table.values() for name in ((pair,) if isinstance(pair, str) else pair)
    }
    shares = {here + name: (2, 1) for name in names if name.endswith(SAMPLING)}
    return Layout(
        {**under(prefix, here, table), **(heads or {})},
        unused or {},
        (re.escape(prefix) + r"(spm|interactions)\..*", *requires),
        takes=(f"{prefix}blocks.#.{INDEX}",),
        prepare=(drop_unused,),
        shares=shares,
        complete=complete,
    )


OTHER_HEAD = "not of the backbone"
CO_DETR = dict.fromkeys(
    ("neck.*", "rpn_head.*", "query_head.*", "roi_head.*", "bbox_head.*"), OTHER_HEAD
)
ORIGINS = (
    Origin(
        "vit-comer",
        "the authors' ViT-CoMer backbone",
        (
            *(layout(table) for table in VARIANTS),
            *(layout(table, "backbone.") for table in VARIANTS),
            *(
                layout(table, "backbone.", unused=CO_DETR, requires=(r"query_head\..*",))
                for table in VARIANTS
            ),
        ),
        part="backbone",
    ),
)
