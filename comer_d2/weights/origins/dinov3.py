"""DINOv3, with and without biases of q and v, plain and gated; EUPE and LingBot-Vision alike.

Names: facebookresearch/dinov3; timm; Hugging Face transformers.
"""

from ..conversion import Conversion, Layout, Names, Origin
from ..files import WeightsError
from ..vit_steps import (
    COMPUTED,
    FINAL_NORM,
    GAMMA,
    GATED_MLP,
    HEADS,
    LAYER_SCALE,
    MASK_TOKEN,
    PLAIN_BLOCK,
    QUERY_VALUE_BIAS,
    block_numbers,
    tokens,
)


def mask_key_bias(conversion: Conversion) -> None:
    """Applies the masks of 0 and 1 to the biases of q, k and v."""
    for i in block_numbers(conversion, "blocks.#.attn.qkv.bias_mask"):
        name = f"blocks.{i}.attn.qkv.bias"
        mask, bias = conversion.take(f"{name}_mask"), conversion.take(name)
        if mask.shape != bias.shape or not ((mask == 0) | (mask == 1)).all():
            raise WeightsError(f"'{name}_mask' must be 0 or 1 for each of {bias.numel()} biases")
        # Not multiplied: what is under the mask may be no number.
        conversion.left[name] = bias.where(mask != 0, 0)
        conversion.note(f"{name}_mask", mask.numel(), name, "applied to the bias")


AUTHORS_TOKENS, TIMM_TOKENS = ("cls_token", "storage_tokens"), ("cls_token", "reg_token")
AUTHORS = Layout(
    {
        **PLAIN_BLOCK,
        **LAYER_SCALE,
        "blocks.#.mlp.w1": "blocks.#.mlp.fc1_g",
        "blocks.#.mlp.w2": "blocks.#.mlp.fc1_x",
        "blocks.#.mlp.w3": "blocks.#.mlp.fc2",
    },
    {
        **HEADS,
        "rope_embed.periods": COMPUTED,
        "local_cls_norm.*": "only used for the small crops of the pretraining",
        "projectors.*": "EUPE's, to the features of its teachers",
    },
    AUTHORS_TOKENS,
    takes=(*AUTHORS_TOKENS, "blocks.#.attn.qkv.bias_mask"),
    prepare=(tokens(*AUTHORS_TOKENS), mask_key_bias),
)
TIMM = Layout(
    {**PLAIN_BLOCK, **GAMMA, **QUERY_VALUE_BIAS, **GATED_MLP},
    HEADS,
    (*TIMM_TOKENS, r"blocks\.0\.gamma_1"),
    takes=TIMM_TOKENS,
    prepare=(tokens(*TIMM_TOKENS),),
)


def transformers(gated: bool) -> Layout:
    """The names of Hugging Face, where ``up_proj`` is the first layer, or what the gate opens."""
    layer, names = "layer.#.", ("embeddings.cls_token", "embeddings.register_tokens")
    gate: dict[Names, Names] = {f"{layer}mlp.gate_proj": "blocks.#.mlp.fc1_g"} if gated else {}
    return Layout(
        {
            "embeddings.patch_embeddings": "patch_embed.proj",
            **{f"{layer}norm{i}": f"blocks.#.norm{i}" for i in (1, 2)},
            **{f"{layer}layer_scale{i}.lambda1": f"blocks.#.ls{i}.gamma" for i in (1, 2)},
            tuple(f"{layer}attention.{p}_proj.weight" for p in "qkv"): "blocks.#.attn.qkv.weight",
            **{f"{layer}attention.{p}_proj.bias": f"blocks.#.attn.qkv.{p}_bias" for p in "qv"},
            f"{layer}attention.o_proj": "blocks.#.attn.proj",
            f"{layer}mlp.up_proj": "blocks.#.mlp.fc1_x" if gated else "blocks.#.mlp.fc1",
            f"{layer}mlp.down_proj": "blocks.#.mlp.fc2",
            **gate,
        },
        {"embeddings.mask_token": MASK_TOKEN, "norm.*": FINAL_NORM},
        (*map(str, names), *([r"layer\.0\.mlp\.gate_proj\.weight"] * gated)),
        takes=names,
        prepare=(tokens(*names),),
    )


ORIGINS = (
    Origin(
        "dinov3",
        "DINOv3",
        (AUTHORS, TIMM, transformers(gated=True), transformers(gated=False)),
        computes={"rope": "dinov3", "layer_norm_eps": 1e-5},
    ),
)
