"""Plain ViT pretrainings by other libraries' names: a state dict -> a `Pretraining`.

Hugging Face transformers', OpenAI's and OpenCLIP's, and BERT's for Uni-Perceiver. The rules are
those of ``vit_layouts.py``.
"""

from collections.abc import Mapping

from torch import Tensor

from .files import WeightsError
from .ledger import Ledger, Pretraining
from .vit_layouts import CLASSIFIER, FINAL_NORM, MASK_TOKEN
from .vit_parts import close, fuse_qkv, move_tokens, split_glu, token_rows

BERT_PARTS = ("query", "key", "value")


def dinov2_transformers(source: Mapping[str, Tensor], family: str) -> Pretraining:
    """DINOv2, with and without registers, by the names of Hugging Face transformers."""
    ledger = Ledger(source, family)
    ledger.drop(
        [
            (r"embeddings\.mask_token", MASK_TOKEN),
            (r"layernorm\.(weight|bias)", FINAL_NORM),
            (r"classifier\.(weight|bias)", CLASSIFIER),
        ]
    )
    embeddings = "embeddings."
    move_tokens(
        ledger,
        [embeddings + "cls_token", embeddings + "register_tokens"],
        table=embeddings + "position_embeddings",
    )
    for kind in ("weight", "bias"):
        fuse_qkv(ledger, "encoder.layer.{}.attention.attention.{}." + kind, kind, BERT_PARTS)
    layer = r"encoder\.layer\.(\d+)\."
    ledger.rename(
        [
            (r"embeddings\.patch_embeddings\.projection\.(.*)", r"patch_embed.proj.\1"),
            (layer + r"norm([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
            (layer + r"attention\.output\.dense\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
            (layer + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
            (layer + r"mlp\.(fc1|fc2)\.(weight|bias)", r"blocks.\1.mlp.\2.\3"),
            (layer + r"mlp\.weights_out\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
        ]
    )
    split_glu(ledger, packed="encoder.layer.{}.mlp.weights_in")
    return close(ledger, family)


def dinov3_transformers(source: Mapping[str, Tensor], family: str) -> Pretraining:
    """DINOv3 by the names of Hugging Face transformers."""
    ledger = Ledger(source, family)
    ledger.drop([(r"embeddings\.mask_token", MASK_TOKEN), (r"norm\.(weight|bias)", FINAL_NORM)])
    move_tokens(ledger, ["embeddings.cls_token", "embeddings.register_tokens"])
    fuse_qkv(ledger, "layer.{}.attention.{}_proj.weight", "weight")
    gated = "layer.0.mlp.gate_proj.weight" in source
    layer = r"layer\.(\d+)\."
    ledger.rename(
        [
            (r"embeddings\.patch_embeddings\.(weight|bias)", r"patch_embed.proj.\1"),
            (layer + r"norm([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
            (layer + r"attention\.o_proj\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
            (layer + r"attention\.([qv])_proj\.bias", r"blocks.\1.attn.qkv.\2_bias"),
            (layer + r"layer_scale([12])\.lambda1", r"blocks.\1.ls\2.gamma"),
            (layer + r"mlp\.gate_proj\.(weight|bias)", r"blocks.\1.mlp.fc1_g.\2"),
            (
                layer + r"mlp\.up_proj\.(weight|bias)",
                r"blocks.\1.mlp.fc1_x.\2" if gated else r"blocks.\1.mlp.fc1.\2",
            ),
            (layer + r"mlp\.down_proj\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
        ]
    )
    return close(ledger, family)


def openai_clip(source: Mapping[str, Tensor], family: str) -> Pretraining:
    """CLIP's vision tower by the names of OpenAI and OpenCLIP, without ``visual.``."""
    ledger = Ledger(source, family)
    ledger.drop([(r"ln_post\.(weight|bias)", FINAL_NORM), (r"proj", CLASSIFIER)])
    width = source["class_embedding"].numel()
    ledger.left["class_embedding"] = source["class_embedding"].view(1, 1, width)
    if "positional_embedding" in source:
        ledger.left["positional_embedding"] = source["positional_embedding"].unsqueeze(0)
    move_tokens(ledger, ["class_embedding"], table="positional_embedding")
    block = r"transformer\.resblocks\.(\d+)\."
    ledger.rename(
        [
            (r"conv1\.weight", "patch_embed.proj.weight"),
            (r"ln_pre\.(weight|bias)", r"norm_pre.\1"),
            (block + r"ln_([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
            (block + r"attn\.in_proj_(weight|bias)", r"blocks.\1.attn.qkv.\2"),
            (block + r"attn\.out_proj\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
            (block + r"mlp\.c_fc\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
            (block + r"mlp\.c_proj\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
        ]
    )
    return close(ledger, family)


def uni_perceiver(source: Mapping[str, Tensor], family: str) -> Pretraining:
    """Uni-Perceiver, by its authors' names and ViT-Adapter's: a video of one frame, norms first."""
    ledger = Ledger(source, family)
    authors, adapter = "video_embed.embeddings_st_pos.", "visual_embed.patch_embed."
    embed = authors if f"{authors}spatial_pos_embed.weight" in source else adapter
    ledger.drop(
        [
            (r"(token_embed|loss_prepare)\..*", "beside the image encoder"),
            (
                r"(video|visual)_embed\.embeddings_type\.weight",
                "its authors added it to the bias of the patch embedding",
            ),
        ]
    )
    space, time = (
        ledger.take(f"{embed}{kind}_pos_embed.weight") for kind in ("spatial", "temporal")
    )
    if space.ndim != 2 or time.ndim != 2 or not len(time) or space.shape[1] != time.shape[1]:
        raise WeightsError(
            f"{family}: spatial and temporal positions must have shapes (n, D) and (t, D), got "
            f"{tuple(space.shape)} and {tuple(time.shape)}"
        )
    token_rows(f"{embed}spatial_pos_embed.weight", len(space), 0)
    ledger.put("pos_embed", (space + time[:1]).unsqueeze(0))
    ledger.note(f"{embed}spatial_pos_embed.weight", space.numel(), "pos_embed")
    name = f"{embed}temporal_pos_embed.weight"
    ledger.note(name, time.shape[1], "pos_embed", "the first frame's, added to every row")
    ledger.note(name, time[1:].numel(), None, "of the other frames of a video")
    layer = r"(?:fused_encoder\.)?layers\.(\d+)\."
    ledger.rename(
        [
            (r"video_embed\.embeddings\.(weight|bias)", r"patch_embed.proj.\1"),
            (r"visual_embed\.patch_embed\.proj\.(weight|bias)", r"patch_embed.proj.\1"),
            (r"(?:video|visual)_embed\.embeddings_norm\.(weight|bias)", r"norm_pre.\1"),
            (layer + r"norm([12])\.(weight|bias)", r"blocks.\1.norm\2.\3"),
            (layer + r"self_attn\.in_proj[._](weight|bias)", r"blocks.\1.attn.qkv.\2"),
            (layer + r"self_attn\.out_proj\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
            (layer + r"linear([12])\.(weight|bias)", r"blocks.\1.mlp.fc\2.\3"),
            (layer + r"gamma_([12])", r"blocks.\1.ls\2.gamma"),
        ]
    )
    return close(ledger, family)


def uni_perceiver_post_norm(source: Mapping[str, Tensor], family: str) -> Pretraining:
    """Uni-Perceiver's first visual encoder, in ViT-Adapter 0.1: BERT's blocks, norms after the sums."""
    ledger = Ledger(source, family)
    embed = "visual_embed.patch_embed."
    position = ledger.take(embed + "pos_embed.weight")
    kind = ledger.take("visual_embed.embeddings_type.weight")
    if kind.shape != (1, position.shape[-1]):
        raise WeightsError(
            f"{family}: 'visual_embed.embeddings_type.weight' must have shape "
            f"(1, {position.shape[-1]}), got {tuple(kind.shape)}"
        )
    # One type for every patch, so it can be part of every position.
    ledger.put("pos_embed", (position + kind).unsqueeze(0))
    ledger.note(embed + "pos_embed.weight", position.numel(), "pos_embed")
    ledger.note(
        "visual_embed.embeddings_type.weight", kind.numel(), "pos_embed", "added to every row"
    )
    for part in ("weight", "bias"):
        fuse_qkv(ledger, "layers.{}.attention.self.{}." + part, part, BERT_PARTS)
    layer = r"layers\.(\d+)\."
    ledger.rename(
        [
            (r"visual_embed\.patch_embed\.proj\.(weight|bias)", r"patch_embed.proj.\1"),
            (r"visual_embed\.embeddings_norm\.(weight|bias)", r"norm_pre.\1"),
            (layer + r"attention\.output\.dense\.(weight|bias)", r"blocks.\1.attn.proj.\2"),
            (layer + r"attention\.output\.LayerNorm\.(weight|bias)", r"blocks.\1.norm1.\2"),
            (layer + r"intermediate\.dense\.(weight|bias)", r"blocks.\1.mlp.fc1.\2"),
            (layer + r"output\.dense\.(weight|bias)", r"blocks.\1.mlp.fc2.\2"),
            (layer + r"output\.LayerNorm\.(weight|bias)", r"blocks.\1.norm2.\2"),
        ]
    )
    return close(ledger, family)
