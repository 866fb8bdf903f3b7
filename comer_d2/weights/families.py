"""Which pretraining a state dict is, told by its names."""

import re
from collections.abc import Callable, Mapping

from torch import Tensor

from . import foreign_layouts, vit_layouts
from .files import WeightsError, first
from .ledger import Part, Pretraining

Converter = Callable[[Mapping[str, Tensor], str], Pretraining]

# Name of the family -> its layouts. Several names may share one layout: they compute the same.
CONVERTERS: dict[str, list[Converter]] = {
    name: [vit_layouts.own_branch, *layouts]
    for name, layouts in {
        **{
            plain: [vit_layouts.plain_vit]
            for plain in ("deit", "deit-distilled", "augreg", "mae", "deit3", "siglip2", "vit")
        },
        "dinov2": [vit_layouts.plain_vit, foreign_layouts.dinov2_transformers],
        "beit": [vit_layouts.beit],
        "beitv2": [vit_layouts.beit],
        "uni-perceiver": [foreign_layouts.uni_perceiver],
        "uni-perceiver-post-norm": [foreign_layouts.uni_perceiver_post_norm],
        "clip": [vit_layouts.plain_vit, foreign_layouts.openai_clip],
        "clip-quickgelu": [vit_layouts.plain_vit, foreign_layouts.openai_clip],
        "dinov3": [vit_layouts.dinov3, foreign_layouts.dinov3_transformers],
        "eva02": [vit_layouts.eva02],
    }.items()
}
# A layout, the families that it may be of, and names by which it is known: all of the first must
# be there, none of the second. The first match counts.
Known = tuple[Converter, tuple[str, ...], tuple[str, ...], tuple[str, ...]]
OWN_TOKENS = "prefix_tokens"
OWN_SIGNS: list[Known] = [
    (vit_layouts.own_branch, families, present, absent)
    for families, present, absent in (
        (
            ("uni-perceiver",),
            (r"norm_pre\.weight", r"patch_embed\.proj\.bias", r"blocks\.0\.ls1\.gamma"),
            (OWN_TOKENS, "cls_token"),
        ),
        (
            ("uni-perceiver-post-norm",),
            (r"norm_pre\.weight", r"patch_embed\.proj\.bias", r"blocks\.0\.attn\.qkv\.weight"),
            (OWN_TOKENS, "cls_token"),
        ),
        (("beit",), (OWN_TOKENS, r".*relative_position_bias_table"), ()),
        (("clip", "clip-quickgelu"), (OWN_TOKENS, r"norm_pre\.weight"), ()),
        (("dinov3",), (OWN_TOKENS,), ("pos_embed",)),
        (("eva02",), (OWN_TOKENS, r"blocks\.0\.attn\.qkv\.q_bias"), ()),
        (("vit",), (OWN_TOKENS,), ()),
    )
]
SIGNS: list[Known] = [
    *OWN_SIGNS,
    (
        foreign_layouts.uni_perceiver,
        ("uni-perceiver",),
        (r"(video_embed\.embeddings_st_pos|visual_embed\.patch_embed)\.spatial_pos_embed\.weight",),
        (),
    ),
    (
        foreign_layouts.uni_perceiver_post_norm,
        ("uni-perceiver-post-norm",),
        (r"visual_embed\.patch_embed\.pos_embed\.weight",),
        (),
    ),
    (
        foreign_layouts.dinov2_transformers,
        ("dinov2",),
        (r"encoder\.layer\.0\.attention\.attention\.query\.weight", r".*\.layer_scale1\.lambda1"),
        (),
    ),
    (
        foreign_layouts.dinov3_transformers,
        ("dinov3",),
        (r"layer\.0\.attention\.q_proj\.weight", r"embeddings\.register_tokens"),
        (),
    ),
    (
        foreign_layouts.openai_clip,
        ("clip", "clip-quickgelu"),
        (r"transformer\.resblocks\.0\.attn\.in_proj_weight", r"class_embedding"),
        (),
    ),
    (vit_layouts.beit, ("beit",), (r".*relative_position_bias_table",), ()),
    (
        vit_layouts.dinov3,
        ("dinov3",),
        (r"storage_tokens|reg_token", r"cls_token", r"blocks\.0\.attn\.qkv\.weight"),
        (r"pos_embed",),
    ),
    (
        vit_layouts.eva02,
        ("eva02",),
        (
            r"pos_embed",
            r"blocks\.0\.attn\.(q_proj\.weight|(qkv\.)?q_bias)",
            r"blocks\.0\.mlp\.(w12|w1|fc1|fc1_g)\..*",
        ),
        (r"reg_token", r"blocks\.0\.gamma_1"),
    ),
    (
        vit_layouts.plain_vit,
        ("clip", "clip-quickgelu"),
        (r"norm_pre\.weight", r"blocks\.0\.attn\.qkv\.weight", r"pos_embed"),
        (),
    ),
    (
        vit_layouts.plain_vit,
        ("dinov2",),
        (
            r"pos_embed",
            r"blocks\.0\.attn\.qkv\.weight",
            r"blocks\.0\.ls1\.gamma",
            r"reg_token|register_tokens|mask_token",
        ),
        (),
    ),
    (
        vit_layouts.plain_vit,
        ("vit",),
        (r"pos_embed", r"blocks\.0\.attn\.qkv\.weight", r"patch_embed\.proj\.weight"),
        (),
    ),
]
TITLES = {
    "vit": "plain ViT (DeiT, AugReg, MAE, DINO, DINOv2, DeiT-III, SigLIP 2: all load alike)",
    "deit": "DeiT",
    "deit-distilled": "DeiT, distilled",
    "augreg": "AugReg",
    "mae": "MAE",
    "deit3": "DeiT-III",
    "siglip2": "SigLIP 2",
    "dinov2": "DINOv2",
    "beit": "BEiT or BEiTv2",
    "beitv2": "BEiTv2",
    "uni-perceiver": "Uni-Perceiver",
    "uni-perceiver-post-norm": "Uni-Perceiver, the first, with norms after the sums",
    "clip": "CLIP",
    "clip-quickgelu": "CLIP with QuickGELU",
    "dinov3": "DINOv3",
    "eva02": "EVA-02",
}
# What image encoders are inside of, and what else is beside them there.
ENCLOSURES: list[tuple[str, str]] = [
    ("module.", r"^$"),
    ("visual.trunk.", r"(visual\.head|text|transformer|token_embedding|ln_final)\..*"),
    ("visual.", r"(text|transformer|token_embedding|ln_final)\..*"),
    ("backbone.", r"(head|dino_head|ibot_head)\..*"),
    ("dinov2_with_registers.", r"classifier\..*"),
    ("dinov2.", r"classifier\..*"),
    ("model.", r"(classifier|head)\..*"),
]
BESIDE_ENCODER = r"positional_embedding|text_projection|logit_(scale|bias)|mask_token"


def convert_pretraining(
    state_dict: Mapping[str, Tensor], family: str | None = None, source: str = "the state dict"
) -> Pretraining:
    """Turns the state dict of any known plain ViT into the names of this network's ViT branch.

    Args:
        state_dict: tensors by name, in one of the family's layouts.
        family: name of the family (one of ``CONVERTERS``); ``None``: told by the names.
        source: what the state dict is called in messages.

    Returns:
        The weights, where every element went, and how the family computes.

    Raises:
        WeightsError: if the family is not known, or cannot be told, or its layout is broken.
    """
    inner, beside = without_enclosure(state_dict)
    converter, families = recognise(inner, source)
    if family is None and len(families) > 1:
        raise WeightsError(
            f"{source} can be {' or '.join(map(repr, families))}: the names are the same, the "
            "computation is not. Say which it is (family=...; in a config, train.init_family)"
        )
    if family is not None and family not in CONVERTERS:
        raise WeightsError(f"family must be one of {sorted(CONVERTERS)}, got {family!r}")
    family = family or families[0]
    if converter not in CONVERTERS[family]:
        raise WeightsError(
            f"{source} is not {family!r}: by its names it is {' or '.join(map(repr, families))}"
        )
    result = converter(inner, family)
    result.family, result.key = TITLES[family], family
    result.parts += [
        Part(name, tensor.numel(), None, "beside the image encoder")
        for name, tensor in beside.items()
    ]
    return result


def without_enclosure(
    state_dict: Mapping[str, Tensor],
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The image encoder's tensors without the prefix of what it is in, and the known others."""
    inner, beside = dict(state_dict), {}
    for prefix, others in ENCLOSURES:
        if not any(name.startswith(prefix) for name in inner):
            continue
        outside = {n: t for n, t in inner.items() if not n.startswith(prefix)}
        unknown = [n for n in outside if not re.fullmatch(f"{others}|{BESIDE_ENCODER}", n)]
        if unknown:
            continue
        beside |= outside
        inner = {n.removeprefix(prefix): t for n, t in inner.items() if n.startswith(prefix)}
    return inner, beside


def recognise(names: Mapping[str, Tensor], source: str) -> tuple[Converter, tuple[str, ...]]:
    """The layout that a state dict has, and the families that it can be of.

    Raises:
        WeightsError: if it has no known layout.
    """

    def has(pattern: str) -> bool:
        return any(re.fullmatch(pattern, name) for name in names)

    for converter, families, present, absent in SIGNS:
        if all(map(has, present)) and not any(map(has, absent)):
            return converter, families
    raise WeightsError(
        f"{source} is no pretraining that is known here (docs/PRETRAINED.md lists them); its names "
        f"begin with {first(list(names))}"
    )
