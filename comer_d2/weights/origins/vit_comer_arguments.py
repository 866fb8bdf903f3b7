"""The authors' constructor arguments in this project's terms."""

from collections.abc import Mapping, Sequence
from typing import Any

# Arguments of the ViT with the same name and meaning.
SAME_IN_VIT = ("in_chans", "embed_dim", "depth", "num_heads", "mlp_ratio", "drop_path_rate")
# The authors' argument -> the argument here, where the meaning is the same.
SAME_MEANING = {
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
        Keyword arguments of :class:`comer_d2.ViTCoMer`; under ``"vit"``, those of the
        :class:`~comer_d2.network.ViT` that it is given.

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

    vit: dict[str, Any] = {name: given.pop(name) for name in SAME_IN_VIT if name in given}
    arguments = {new: given.pop(old) for old, new in SAME_MEANING.items() if old in given}
    if not given.pop("with_cffn", True):
        arguments["cffn_ratio"] = None
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
        "mrfp_ratio": given.pop("dim_ratio", 0.5),
        "num_extra_cti": given.pop("extra_num", 4) if pop_extra_switch(given) else 0,
        "vit_features": vit_features(variant, given.pop("add_vit_feature", True)),
    }
    with_bias = "qv" if variant == "beit" else "qkv"
    vit |= {
        "pretrain_img_size": sizes.pop(),
        "qkv_bias": with_bias if given.pop("qkv_bias", True) else "none",
        "window_size": windows(
            given.pop("window_attn", False), given.pop("window_size", 14), config.get("depth", 12)
        ),
    }
    if variant == "beit":
        vit["layer_scale_init"] = init_values or None
        vit["use_abs_pos"] = given.pop("use_abs_pos_emb")
        vit["use_rel_pos_bias"] = given.pop("use_rel_pos_bias")
    else:
        vit["layer_scale_init"] = 1.0 if given.pop("layer_scale", True) else None
    if given:
        raise ValueError(f"unknown arguments of the authors' {variant!r} backbone: {sorted(given)}")
    return {"vit": vit, **arguments}


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
