"""``timm:<id>``: the weights that timm has under an id, and how its model computes."""

import warnings
from collections.abc import Sequence
from typing import Any

import timm
from torch import Tensor, nn

from .files import WeightsError

TIMM = "timm:"
# timm's classes -> its names.
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu", "SiLU": "swiglu"}
# (grid offset, indexing, temperature, reference grid) of concatenated axial positions. The offset
# does not count where there is no token without a position: attention sees differences alone.
AXIAL = {(0.0, "ij", 10000.0, (16, 16)): "eva02", (0.0, "xy", 100.0, None): "rope-vit"}


def timm_weights(
    source: str, pyramids: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """The state dict of ``timm:<id>``, downloaded or from timm's cache, and how the model computes.

    Args:
        source: ``timm:<id>``.
        pyramids: names of the hierarchical networks of timm that the weights may be for. Of these how
            they compute is ``None``: it is the same timm model.

    Raises:
        WeightsError: if timm has no such weights, or they are neither a ViT's nor of ``pyramids``.
    """
    model_id = source.removeprefix(TIMM)
    if not timm.is_model(model_id.split(".")[0]):
        raise WeightsError(
            f"timm {timm.__version__} has no model '{model_id}': timm.list_models(pretrained=True) "
            "lists them"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = timm.create_model(model_id, pretrained=True)
    except Exception as e:  # the hub's, the network's, timm's
        reason = (str(e).strip() or type(e).__name__).splitlines()[0]
        raise WeightsError(
            f"timm could not get '{model_id}': {reason}. Without a network, its hub cache must "
            "have the model, or give the path of a file"
        ) from e
    architecture = model_id.split(".")[0]
    if architecture in [name.split(".")[0] for name in pyramids]:
        return model.state_dict(), None
    try:
        return model.state_dict(), timm_computation(model, source)
    except WeightsError as e:
        if not pyramids:
            raise
        raise WeightsError(
            f"{source} is timm's {architecture}, and the model has {', '.join(pyramids)}: name that one "
            "in the config, or take weights of this one"
        ) from e


def timm_computation(model: nn.Module, label: str) -> dict[str, Any]:
    """How a timm ViT computes, in the terms of :attr:`comer_d2.network.ViT.computation`.

    Raises:
        WeightsError: for models and blocks that are no ViT's known here.
    """
    kinds = ("VisionTransformer", "VisionTransformerDistilled", "Eva", "Beit")
    block = getattr(model, "blocks", [None])[0]
    known = type(model).__name__ in kinds and type(block).__name__ in ("Block", "EvaBlock")
    norms = [getattr(block, "norm1", None), getattr(model, "norm_pre", None)]
    names = {type(norm).__name__ for norm in norms}
    if not known or not names <= {"LayerNorm", "Identity", "NoneType"}:
        raise WeightsError(
            f"{label} is timm's {type(model).__name__} with {type(block).__name__} blocks, and no ViT "
            "that is known here"
        )
    activation = type(block.mlp.act).__name__
    return {
        "rope": timm_rope(model),
        "layer_norm_eps": block.norm1.eps,
        "pre_norm_eps": getattr(norms[1], "eps", None),
        "post_norm": False,
        "mlp": ACTIVATIONS.get(activation, activation),
        "use_rel_pos_bias": getattr(block.attn, "relative_position_bias_table", None) is not None
        or getattr(model, "rel_pos_bias", None) is not None,
        "num_heads": block.attn.num_heads,
    }


def timm_rope(model: nn.Module) -> str | None:
    """Which rotary positions a timm model has; the name of timm's class where they are unknown here."""
    rope = getattr(model, "rope", None)
    if rope is None:
        return None
    kind, rotate_half = type(rope).__name__, getattr(rope, "rotate_half", False)
    if kind == "RotaryEmbeddingDinoV3" and rotate_half and rope.temperature == 100.0:
        return "dinov3"
    if kind != "RotaryEmbeddingCat" or rotate_half or rope.in_pixels:
        return kind
    reference = tuple(rope.ref_feat_shape) if rope.ref_feat_shape else None
    if (rope.grid_indexing, rope.temperature) == ("xy", 10000.0):
        # Scaled to the grid of the pretraining, which changes nothing on that grid.
        has_class = getattr(model, "cls_token", None) is not None
        patch_embed: Any = model.patch_embed
        grid = tuple(patch_embed.grid_size)
        if reference in (None, grid) and rope.grid_offset == float(has_class):
            return "pe"
    key = (float(rope.grid_offset), rope.grid_indexing, rope.temperature, reference)
    return AXIAL.get(key, kind)
