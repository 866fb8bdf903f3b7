"""Official Mask2Former checkpoints -> the head of this project's Mask2Former.

The head has the official names, but for q, k and v and for the offsets and weights of deformable
attention. Older checkpoints have two older names: the queries' content, and a pixel decoder without a
prefix of its own.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..heads.mask2former import Mask2FormerHead
from ..heads.mask_decoder import MaskedTransformerDecoder
from ..heads.pixel_decoder import MSDeformAttnPixelDecoder
from .files import WeightsError, check_finite, first
from .ledger import Ledger, Pretraining
from .official import join_sampling, without_wrapper
from .sizes import Sizes, check_whole

TITLE = "Mask2Former"
HEAD = "sem_seg_head."
PIXEL_DECODER = HEAD + "pixel_decoder."
PREDICTOR = HEAD + "predictor."
RENAMES = (
    (r"sem_seg_head\.predictor\.static_query\.weight", PREDICTOR + "query_feat.weight"),
    (
        r"sem_seg_head\.((?:input_proj|transformer|mask_features|adapter_\d+|layer_\d+)\..+)",
        PIXEL_DECODER + r"\1",
    ),
    (r"(sem_seg_head\.(?:pixel_decoder|predictor)\..+)", r"\1"),
    (r"(criterion\.empty_weight)", r"\1"),
)
NOT_USED = (
    (r"backbone\..+", "of another backbone: only the head is loaded"),
    (r"pixel_(mean|std)", "the config has the normalisation of images"),
)


def is_mask2former(names: Iterable[str]) -> bool:
    """Whether a state dict has the head of an official Mask2Former in it."""
    return any(name.startswith(PREDICTOR + "transformer_cross_attention_layers.") for name in names)


def convert_mask2former(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Turns an official Mask2Former checkpoint into the head's part of a model here.

    Args:
        state_dict: the model's tensors, with any backbone or none, or a checkpoint with these in
            its ``model``.

    Returns:
        Tensors ``sem_seg_head.*`` and, if it was there, ``criterion.empty_weight``, for a model of
        ``configs/common/models/mask2former_comer.py``; they share memory with the given ones.

    Raises:
        WeightsError: for names that Mask2Former does not have, or that are missing, for shapes that
            do not fit together, and for values that are not finite.
    """
    return official_mask2former(state_dict).tensors


def official_mask2former(state_dict: Mapping[str, Any]) -> Pretraining:
    """As :func:`convert_mask2former`, with the books."""
    state_dict = without_wrapper(state_dict)
    if not is_mask2former(state_dict):
        raise WeightsError(
            f"no '{PREDICTOR}*': this is no Mask2Former (its first names: {list(state_dict)[:5]})"
        )
    ledger = Ledger(state_dict, TITLE)
    ledger.drop(NOT_USED)
    for name in [name for name in ledger.left if ".in_proj_" in name]:
        stem, kind = name.split(".in_proj_")
        ledger.split(name, [f"{stem}.{part}_proj.{kind}" for part in "qkv"])
    join_sampling(ledger, named_here)
    ledger.rename(RENAMES)
    if ledger.left:
        raise WeightsError(f"{TITLE} has no {first(list(map(repr, ledger.left)))}")
    tensors = ledger.result.tensors
    check_finite(tensors, TITLE)
    try:
        own = sized_head(tensors).state_dict(prefix=HEAD)
    except ValueError as e:
        raise WeightsError(f"{TITLE}'s head: {e}") from e
    if "criterion.empty_weight" in tensors:
        own["criterion.empty_weight"] = own[PREDICTOR + "class_embed.bias"]
    check_whole(tensors, own, TITLE)
    return ledger.result


def named_here(name: str) -> str | None:
    """The first of the rules that matches a name, applied to it."""
    for pattern, replacement in RENAMES:
        if match := re.fullmatch(pattern, name):
            return match.expand(replacement)
    return None


def sized_head(tensors: Mapping[str, Tensor]) -> nn.Module:
    """A head, without memory for its weights, of the sizes that a state dict shows.

    Numbers of attention heads and of the norms' groups do not show; they are not right in it.
    """
    sizes = Sizes(tensors)
    mask_dim, conv_dim = sizes.shape(PIXEL_DECODER + "mask_features.weight", 4)[:2]
    num_fpn = len([n for n in tensors if re.fullmatch(r".*\.adapter_\d+\.weight", n)])
    num_encoder = sizes.count(PIXEL_DECODER + "input_proj.#.")
    projections = [f"adapter_{k}.weight" for k in range(1, num_fpn + 1)]
    projections += [f"input_proj.{i}.0.weight" for i in reversed(range(num_encoder))]
    features = [f"res{i + 2}" for i in range(len(projections))]
    layer = PIXEL_DECODER + "transformer.encoder.layers.#."
    samples = sizes.size(layer + "self_attn.sampling.weight", 3)
    queries, hidden_dim = sizes.shape(PREDICTOR + "query_feat.weight", 2)
    with torch.device("meta"):
        pixel_decoder = MSDeformAttnPixelDecoder(
            in_features=features,
            in_channels=[sizes.shape(PIXEL_DECODER + name, 4)[1] for name in projections],
            transformer_in_features=features[num_fpn:],
            conv_dim=conv_dim,
            mask_dim=mask_dim,
            num_heads=1,
            num_layers=sizes.count(layer),
            ffn_dim=sizes.size(layer + "linear1.weight", 1),
            num_points=samples // (3 * max(num_encoder, 1)),
            norm_groups=1,
        )
        predictor = MaskedTransformerDecoder(
            in_channels=conv_dim,
            num_classes=sizes.shape(PREDICTOR + "class_embed.weight", 2)[0] - 1,
            hidden_dim=hidden_dim,
            mask_dim=mask_dim,
            num_queries=queries,
            num_heads=1,
            num_layers=sizes.count(PREDICTOR + "transformer_cross_attention_layers.#."),
            ffn_dim=sizes.size(PREDICTOR + "transformer_ffn_layers.#.linear1.weight", 1),
            num_levels=sizes.shape(PREDICTOR + "level_embed.weight", 2)[0],
            enforce_input_project=sizes.has(PREDICTOR + "input_proj.#."),
        )
        return Mask2FormerHead(pixel_decoder, predictor)
