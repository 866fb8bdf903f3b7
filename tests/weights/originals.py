"""timm's state dicts as the families' authors, and other libraries, write them.

The inverse of what comer_d2.weights reads, written from the families' own definitions.
"""

import argparse
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

State = Mapping[str, Tensor]


def renamed(state: State, *rules: tuple[str, str]) -> dict[str, Tensor]:
    """The state dict with substitutions in its names."""
    result = {}
    for name, tensor in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        result[name] = tensor
    return result


def like(state: State, *shape: int) -> Tensor:
    """Random numbers of the type of a state dict."""
    return torch.randn(*shape, dtype=next(iter(state.values())).dtype)


def depth_of(state: State) -> int:
    return 1 + max(int(n.split(".")[1]) for n in state if n.startswith("blocks."))


def deit(state: State) -> dict[str, Any]:
    """With the arguments of the training, as the released files have them."""
    return {"model": dict(state), "args": argparse.Namespace(lr=5e-4, model="deit"), "epoch": 299}


def deit3(state: State) -> dict[str, Any]:
    return {"model": renamed(state, (r"ls([12])\.gamma", r"gamma_\1"))}


def mae(state: State) -> dict[str, Any]:
    """The pretraining's file, with the decoder, and a learning rate that is a numpy number."""
    dim = state["cls_token"].shape[-1]
    decoder = {
        "mask_token": like(state, 1, 1, 8),
        "decoder_embed.weight": like(state, 8, dim),
        "decoder_pos_embed": like(state, 1, 17, 8),
        "decoder_blocks.0.norm1.weight": like(state, 8),
        "decoder_norm.weight": like(state, 8),
        "decoder_pred.bias": like(state, 768),
    }
    no_head = {n: t for n, t in state.items() if not n.startswith("head")}
    return {"model": no_head | decoder, "optimizer": {"lr": np.float64(1e-4)}}


def dinov2(state: State) -> dict[str, Any]:
    """With registers the class token's row is still in the table."""
    state = renamed(
        state, (r"reg_token", "register_tokens"), (r"(mlp)\.fc1(?=\..*PACKED)", r"\1.w12")
    )
    if "register_tokens" in state:
        row = like(state, 1, 1, state["cls_token"].shape[-1])
        state["cls_token"] = state["cls_token"] - row
        state["pos_embed"] = torch.cat([row, state["pos_embed"]], dim=1)
    if is_packed(state):
        state = renamed(state, (r"mlp\.fc1\.", "mlp.w12."), (r"mlp\.fc2\.", "mlp.w3."))
    return state | {"mask_token": like(state, 1, state["cls_token"].shape[-1])}


def is_packed(state: State) -> bool:
    name = "blocks.0.mlp.{}.weight"
    fc1 = state.get(name.format("fc1"))
    return fc1 is not None and fc1.shape[0] == 2 * state[name.format("fc2")].shape[1]


def dinov2_transformers(state: State) -> dict[str, Any]:
    original = dinov2(state)
    result = renamed(
        original,
        (r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1"),
        (r"^pos_embed$", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
        (r"^blocks", "encoder.layer"),
        (r"attn\.proj", "attention.output.dense"),
        (r"ls([12])\.gamma", r"layer_scale\1.lambda1"),
        (r"mlp\.w12", "mlp.weights_in"),
        (r"mlp\.w3", "mlp.weights_out"),
        (r"^norm\.", "layernorm."),
    )
    for i in range(depth_of(state)):
        for kind in ("weight", "bias"):
            q, k, v = result.pop(f"encoder.layer.{i}.attn.qkv.{kind}").chunk(3)
            for part, tensor in (("query", q), ("key", k), ("value", v)):
                result[f"encoder.layer.{i}.attention.attention.{part}.{kind}"] = tensor
    return result


def dinov3(state: State) -> dict[str, Any]:
    """q, k and v have one bias, with a mask over k's; what is under the mask is anything."""
    result = renamed(
        state,
        (r"reg_token", "storage_tokens"),
        (r"gamma_([12])", r"ls\1.gamma"),
        (r"mlp\.fc1_g", "mlp.w1"),
        (r"mlp\.fc1_x", "mlp.w2"),
    )
    if any(".mlp.w1." in name for name in result):
        result = renamed(result, (r"mlp\.fc2", "mlp.w3"))
    for i in range(depth_of(state)):
        q, v = (result.pop(f"blocks.{i}.attn.{p}_bias", None) for p in "qv")
        if q is not None:
            result[f"blocks.{i}.attn.qkv.bias"] = torch.cat([q, torch.randn_like(q), v])
            ones = torch.ones_like(q)
            result[f"blocks.{i}.attn.qkv.bias_mask"] = torch.cat([ones, 0 * ones, ones])
    result["mask_token"] = like(state, 1, state["cls_token"].shape[-1])
    result["rope_embed.periods"] = like(state, 4)
    return result


def dinov3_transformers(state: State) -> dict[str, Any]:
    gated = any("fc1_g" in name for name in state)
    result = renamed(
        state,
        (r"^cls_token$", "embeddings.cls_token"),
        (r"^reg_token$", "embeddings.register_tokens"),
        (r"^patch_embed\.proj", "embeddings.patch_embeddings"),
        (r"^blocks", "layer"),
        (r"attn\.proj", "attention.o_proj"),
        (r"attn\.([qv])_bias", r"attention.\1_proj.bias"),
        (r"gamma_([12])", r"layer_scale\1.lambda1"),
        (r"mlp\.fc1_g", "mlp.gate_proj"),
        (r"mlp\.fc1_x" if gated else r"mlp\.fc1", "mlp.up_proj"),
        (r"mlp\.fc2", "mlp.down_proj"),
    )
    for i in range(depth_of(state)):
        for part, tensor in zip(
            "qkv", result.pop(f"layer.{i}.attn.qkv.weight").chunk(3), strict=True
        ):
            result[f"layer.{i}.attention.{part}_proj.weight"] = tensor
    return result | {"embeddings.mask_token": like(state, 1, 1, state["cls_token"].shape[-1])}


def eva02(state: State) -> dict[str, Any]:
    """With the buffers of the rotary positions, in every block and outside."""
    result = renamed(
        state,
        (r"attn\.([qv])_proj\.bias", r"attn.\1_bias"),
        (r"attn\.norm", "attn.inner_attn_ln"),
        (r"mlp\.norm", "mlp.ffn_ln"),
        (r"mlp\.fc1_g", "mlp.w1"),
        (r"mlp\.fc1_x", "mlp.w2"),
        (r"mlp\.fc1\.", "mlp.w12."),
        (r"mlp\.fc2", "mlp.w3"),
        (r"^fc_norm", "norm"),
    )
    for prefix in ["", *(f"blocks.{i}.attn." for i in range(depth_of(state)))]:
        result |= {f"{prefix}rope.freqs_{f}": like(state, 16, 8) for f in ("cos", "sin")}
    dim = state["cls_token"].shape[-1]
    result |= {"mask_token": like(state, 1, 1, dim), "lm_head.weight": like(state, 7, dim)}
    return {"module": result}


def beit(state: State) -> dict[str, Any]:
    result = dict(state)
    for name in state:
        if name.endswith("relative_position_bias_table"):
            index = torch.zeros(17, 17, dtype=torch.int64)
            result[name.replace("bias_table", "index")] = index
    return {"model": result}


def beit_pretrained(state: State) -> dict[str, Any]:
    """Before fine-tuning: one table, the mask token, the head that names visual words."""
    dim = state["cls_token"].shape[-1]
    result = renamed(state, (r"^fc_norm", "norm"))
    result |= {
        "rel_pos_bias.relative_position_index": torch.zeros(17, 17, dtype=torch.int64),
        "mask_token": like(state, 1, 1, dim),
        "lm_head.weight": like(state, 11, dim),
        "lm_head.bias": like(state, 11),
    }
    return {"model": result}


def beitv2_pretrained(state: State) -> dict[str, Any]:
    """Also with the two layers behind the ViT, which get the class token alone."""
    dim = state["cls_token"].shape[-1]
    behind = {
        "cls_pt_layers.0.norm1.weight": like(state, dim),
        "cls_pt_layers.1.attn.qkv.weight": like(state, 3 * dim, dim),
    }
    return {"model": beit_pretrained(state)["model"] | behind}


OPEN_CLIP = (
    (r"^cls_token$", "class_embedding"),
    (r"^pos_embed$", "positional_embedding"),
    (r"^patch_embed\.proj", "conv1"),
    (r"^norm_pre", "ln_pre"),
    (r"^norm\.", "ln_post."),
    (r"^blocks", "transformer.resblocks"),
    (r"\.norm([12])", r".ln_\1"),
    (r"attn\.qkv\.", "attn.in_proj_"),
    (r"attn\.proj", "attn.out_proj"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
)


def with_text_tower(state: State, vision: State) -> dict[str, Any]:
    """A whole CLIP around a vision tower."""
    text = {
        "positional_embedding": like(state, 5, 8),
        "text_projection": like(state, 8, 8),
        "logit_scale": like(state, 1)[0],
        "token_embedding.weight": like(state, 9, 8),
        "transformer.resblocks.0.ln_1.weight": like(state, 8),
        "ln_final.weight": like(state, 8),
    }
    return {f"visual.{n}": t for n, t in vision.items()} | text


def open_clip(state: State) -> dict[str, Any]:
    """The vision tower in a whole CLIP."""
    result = renamed(state, *OPEN_CLIP)
    result["class_embedding"] = result["class_embedding"].flatten()
    result["positional_embedding"] = result["positional_embedding"][0]
    result["proj"] = result.pop("head.weight").T.contiguous()
    del result["head.bias"]
    return with_text_tower(state, result)


def perception_encoder(state: State) -> dict[str, Any]:
    """Meta's: OpenCLIP's names, in a whole CLIP of PE core, bare otherwise."""
    result = renamed(state, *OPEN_CLIP, (r"gamma_([12])", r"ls_\1.gamma"))
    pool = {n: t for n, t in state.items() if n.startswith("attn_pool.")}
    result = {n: t for n, t in result.items() if not n.startswith("attn_pool.")}
    heads = [result.pop(n, None) for n in ("head.weight", "head.bias")]
    if "class_embedding" in result:
        result["class_embedding"] = result["class_embedding"].flatten()
    result["positional_embedding"] = result["positional_embedding"][0]
    if not pool:
        return result
    result["attn_pool.probe"] = pool["attn_pool.latent"]
    result["attn_pool.attn.in_proj_weight"] = torch.cat(
        [pool["attn_pool.q.weight"], pool["attn_pool.kv.weight"]]
    )
    result["proj"] = heads[0].T.contiguous()
    return with_text_tower(state, result)


def open_clip_trunk(state: State) -> dict[str, Any]:
    """SigLIP as OpenCLIP has it: timm's model inside."""
    text = {"logit_bias": like(state, 1)[0], "text.token_embedding.weight": like(state, 9, 8)}
    return {f"visual.trunk.{n}": t for n, t in state.items()} | text


def as_it_is(state: State) -> dict[str, Any]:
    return dict(state)


def uni_perceiver(state: State) -> dict[str, Any]:
    """The authors': a video's embedding, with a text's and the losses' parts beside it."""
    result = renamed(
        state,
        (r"^patch_embed\.proj", "video_embed.embeddings"),
        (r"^norm_pre", "video_embed.embeddings_norm"),
        (r"^(spatial|temporal)", r"video_embed.embeddings_st_pos.\1_pos_embed.weight"),
        (r"^layers", "fused_encoder.layers"),
    )
    dim = state["spatial"].shape[1]
    result |= {
        "video_embed.embeddings_type.weight": like(state, 1, dim),
        "token_embed.embeddings.weight": like(state, 11, dim),
        "loss_prepare.logit_scale": like(state, 1)[0],
    }
    return {"model": result}


def uni_perceiver_adapter(state: State) -> dict[str, Any]:
    """ViT-Adapter's, the visual encoder alone."""
    return renamed(
        state,
        (r"^patch_embed", "visual_embed.patch_embed"),
        (r"^norm_pre", "visual_embed.embeddings_norm"),
        (r"^(spatial|temporal)", r"visual_embed.patch_embed.\1_pos_embed.weight"),
        (r"in_proj_", "in_proj."),
    )


def uni_perceiver_post_norm(state: State) -> dict[str, Any]:
    """ViT-Adapter's first, by BERT's names."""
    result = renamed(
        state,
        (r"^patch_embed", "visual_embed.patch_embed"),
        (r"^norm_pre", "visual_embed.embeddings_norm"),
        (r"^spatial", "visual_embed.patch_embed.pos_embed.weight"),
        (r"^temporal", "visual_embed.embeddings_type.weight"),
        (r"self_attn\.out_proj", "attention.output.dense"),
        (r"norm1", "attention.output.LayerNorm"),
        (r"linear1", "intermediate.dense"),
        (r"linear2", "output.dense"),
        (r"norm2", "output.LayerNorm"),
    )
    for name in [name for name in result if "in_proj" in name]:
        layer, kind = name.split(".self_attn.in_proj_")
        for part, tensor in zip(("query", "key", "value"), result.pop(name).chunk(3), strict=True):
            result[f"{layer}.attention.self.{part}.{kind}"] = tensor
    return result
