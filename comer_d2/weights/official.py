"""The authors' ViT-CoMer: their key names and constructor arguments in this project's terms."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

# Official name -> name here, tried in order, on one dotted key. MRFP's six depthwise convolutions
# are three levels of two kernels, numbered level by level.
RENAMES: tuple[tuple[str, str], ...] = (
    # The BEiT variant's names for the same parts.
    (r"(interactions\.\d+\.)multiconv\.", r"\1mrfp."),
    (r"(interactions\.\d+\.)injector\.", r"\1cti_tov."),
    (r"(interactions\.\d+\.)extractor\.", r"\1cti_toc."),
    (r"(interactions\.\d+\.)extra_extractors\.", r"\1extra_CTIs."),
    (r"(blocks\.\d+\.)gamma_?([12])$", r"\1ls\2.gamma"),
    # CNN stem: convolution, norm and activation are numbered through; here each triple is one item.
    (r"^spm\.stem\.([036])\.", lambda m: f"pyramid.stem.{int(m[1]) // 3}.0."),
    (r"^spm\.stem\.([147])\.", lambda m: f"pyramid.stem.{int(m[1]) // 3}.1."),
    (r"^spm\.conv([234])\.", lambda m: f"pyramid.downsample.{int(m[1]) - 2}."),
    (r"^spm\.fc([1234])\.", lambda m: f"pyramid.proj.{int(m[1]) - 1}."),
    (
        r"\.mrfp\.dwconv\.dwconv([1-6])\.",
        lambda m: ".mrfp.convs.{}.{}.".format(*divmod(int(m[1]) - 1, 2)),
    ),
    (r"\.mrfp\.dwconv\.bn([123])\.", lambda m: f".mrfp.norms.{int(m[1]) - 1}."),
    # Interactions.
    (r"\.(cti_toc|extra_CTIs\.\d+)\.cfinter\.", r".\1.feature_interaction."),
    (
        r"\.(cti_toc|extra_CTIs\.\d+)\.(query|feat)_norm\.",
        r".\1.feature_interaction.outer_\2_norm.",
    ),
    (r"\.ffn_norm\.", ".ffn.norm."),
    (r"\.ffn\.dwconv\.dwconv\.", ".ffn.ffn.dwconv."),
    (r"\.ffn\.(fc[12])\.", r".ffn.ffn.\1."),
    (r"\.cti_tov\.", ".cti_to_v."),
    (r"\.cti_toc\.", ".cti_to_c."),
    (r"\.extra_CTIs\.", ".extra_cti."),
    # Outputs.
    (r"^up\.", "upsample."),
    (r"^norm([1234])\.", lambda m: f"out_norms.{int(m[1]) - 1}."),
)
KNOWN = re.compile(
    r"(pos_embed$|level_embed$|patch_embed\.proj\.|blocks\.\d+\."
    r"(norm[12]|attn|mlp|ls[12])\.|pyramid\.|interactions\.\d+\.|upsample\.|out_norms\.)"
)


def convert_official(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turns a state dict of the authors' backbone into one that loads strictly here.

    It only renames and drops, so it converts a dict of gradients just as well. Dropped are BEiT's
    relative position indices (computed here) and the norms of CTI to C where the authors' network
    creates but never uses them (no ``cnn_feature_interaction``).

    Args:
        state_dict: tensors by the authors' names: bare, under ``backbone.`` (other prefixes are
            then another part's and are left out), or a checkpoint with these in its
            ``state_dict`` or ``model``.

    Returns:
        Tensors by the names of :class:`comer_d2.ViTCoMer`; they share memory with the given ones.

    Raises:
        ValueError: if a name is not one of the authors' backbone, or there is none.
    """
    official = bare_backbone(state_dict)
    attending = {k.split(".cfinter.")[0] for k in official if ".cfinter." in k}
    converted = {}
    for name, tensor in official.items():
        if name.endswith(".relative_position_index") or is_unused_norm(name, attending):
            continue
        new_name = rename(name)
        if not KNOWN.match(new_name):
            raise ValueError(
                f"{name!r} is not a tensor of the authors' ViT-CoMer backbone: is this checkpoint "
                "of another model? (A plain ViT is not one.)"
            )
        converted[new_name] = tensor
    return converted


def bare_backbone(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """The backbone's tensors by their bare names, out of any of the forms they come in."""
    for wrapper in ("state_dict", "model"):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    prefix = "backbone."
    if any(name.startswith(prefix) for name in state_dict):
        state_dict = {
            name.removeprefix(prefix): tensor
            for name, tensor in state_dict.items()
            if name.startswith(prefix)
        }
    if not any(name.startswith("interactions.") for name in state_dict):
        raise ValueError(
            "no 'interactions.*' tensors: this is not a state dict of the authors' ViT-CoMer "
            f"(its first names: {list(state_dict)[:5]})"
        )
    return dict(state_dict)


def rename(name: str) -> str:
    """One official name -> the name here."""
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def is_unused_norm(name: str, attending: set[str]) -> bool:
    """Whether this is an outer norm of a CTI to C without cnn_feature_interaction."""
    module, _, norm = name.rpartition(".")[0].rpartition(".")
    is_outer = norm in ("query_norm", "feat_norm") and re.search(
        r"\.(cti_toc|extractor|extra_CTIs\.\d+|extra_extractors\.\d+)$", module
    )
    return bool(is_outer) and module not in attending


# The authors' argument -> the argument here, where the meaning is the same.
SAME_MEANING = {
    "in_chans": "in_chans",
    "embed_dim": "embed_dim",
    "depth": "depth",
    "num_heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "qkv_bias": "qkv_bias",
    "drop_path_rate": "drop_path_rate",
    "conv_inplane": "stem_width",
    "n_points": "deform_num_points",
    "deform_num_heads": "deform_num_heads",
    "deform_ratio": "deform_ratio",
    "cffn_ratio": "cffn_ratio",
    "interaction_indexes": "interaction_indexes",
    "cnn_feature_interaction": "cnn_feature_interaction",
    "with_cp": "use_act_checkpoint",
}
# What the authors' constructors assume when an argument is not given.
DEFAULTS: dict[str, dict[str, Any]] = {
    "det": {
        "deform_num_heads": 6,
        "deform_ratio": 1.0,
        "cnn_feature_interaction": False,
        "init_values": 0.0,
    },
    "seg": {
        "deform_num_heads": 6,
        "deform_ratio": 1.0,
        "cnn_feature_interaction": True,
        "init_values": 0.0,
        "dim_ratio": 6.0,
    },
    "beit": {
        "deform_num_heads": 6,
        "deform_ratio": 1.0,
        "cnn_feature_interaction": True,
        "init_values": 0.0,
        "use_abs_pos_emb": False,
        "use_rel_pos_bias": True,
        "window_attn": True,
    },
}
# The only value that the networks here have; any other is refused.
FIXED = {
    "patch_size": 16,
    "with_cffn": True,
    "drop_rate": 0.0,
    "attn_drop_rate": 0.0,
    "use_shared_rel_pos_bias": False,
    "use_mean_pooling": True,
}
WITHOUT_EFFECT = {"type", "variant", "pretrained", "num_classes"}


def official_arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    """Turns the authors' constructor arguments into those of :class:`comer_d2.ViTCoMer`.

    Args:
        config: the ``backbone`` dict of a config of the authors, plus ``variant``: ``"det"``
            (MMDetection; assumed if absent), ``"seg"`` (MMSegmentation) or ``"beit"`` (BEiT
            pretraining).

    Returns:
        Keyword arguments of :class:`comer_d2.ViTCoMer`.

    Raises:
        ValueError: for an unknown variant or argument, or a value that the network here lacks.
    """
    variant = config.get("variant", "det")
    if variant not in DEFAULTS:
        raise ValueError(f"variant must be one of {sorted(DEFAULTS)}, got {variant!r}")
    given = {**DEFAULTS[variant], **config}
    for name in WITHOUT_EFFECT:
        given.pop(name, None)
    for name, value in FIXED.items():
        if given.pop(name, value) != value:
            raise ValueError(f"{name}={config[name]!r} is not supported, only {value!r}")

    arguments = {new: given.pop(old) for old, new in SAME_MEANING.items() if old in given}
    # The authors' backbones have no MRFP where they have no CTI to V.
    to_v = given.pop("use_injector" if variant == "beit" else "use_CTI_toV", True)
    to_c = given.pop("use_extractor" if variant == "beit" else "use_CTI_toC", True)
    sizes = {given.pop(name) for name in ("pretrain_size", "img_size") if name in given} or {224}
    if len(sizes) > 1:
        raise ValueError(f"pretrain_size and img_size must agree, got {sorted(sizes)}")
    init_values = given.pop("init_values")
    arguments |= {
        "use_mrfp": to_v,
        "use_cti_to_v": to_v,
        "use_cti_to_c": to_c,
        "gate_init": init_values,
        "pretrain_img_size": sizes.pop(),
        "mrfp_ratio": given.pop("dim_ratio", 0.5),
        "num_extra_cti": given.pop("extra_num", 4) if pop_extra_switch(given) else 0,
        "vit_features": vit_features(variant, given.pop("add_vit_feature", True)),
        "window_size": windows(
            given.pop("window_attn", False), given.pop("window_size", 14), config.get("depth", 12)
        ),
    }
    if variant == "beit":
        arguments["layer_scale_init"] = init_values or None
        arguments["use_abs_pos"] = given.pop("use_abs_pos_emb")
        arguments["use_rel_pos_bias"] = given.pop("use_rel_pos_bias")
    else:
        arguments["layer_scale_init"] = 1.0 if given.pop("layer_scale", True) else None
    if given:
        raise ValueError(f"unknown arguments of the authors' {variant!r} backbone: {sorted(given)}")
    return arguments


def pop_extra_switch(given: dict[str, Any]) -> bool:
    """Whether the last interaction has extra CTI blocks, under any of the authors' names for it."""
    switches = [given.pop(name, True) for name in ("use_extra_CTI", "use_extra_extractor")]
    return all(switches)


def vit_features(variant: str, add_vit_feature: bool) -> str:
    """Which ViT features the variant adds to its outputs."""
    if not add_vit_feature:
        return "none"
    return "stages" if variant == "seg" else "last"


def windows(
    window_attn: bool | Sequence[bool], window_size: int | Sequence[int | None], depth: int
) -> list[int]:
    """One window side per block, 0 for global attention."""
    on = [window_attn] * depth if isinstance(window_attn, bool) else window_attn
    side = [window_size] * depth if isinstance(window_size, int) else window_size
    if not len(on) == len(side) == depth:
        raise ValueError(
            f"window_attn ({len(on)}) and window_size ({len(side)}) must name {depth} blocks"
        )
    return [(w or 0) if used else 0 for used, w in zip(on, side, strict=True)]
