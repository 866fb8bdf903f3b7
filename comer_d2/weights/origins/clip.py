"""CLIP's vision tower, and the Perception Encoder's: the same names, another computation.

Names: openai/CLIP, mlfoundations/open_clip, facebookresearch/perception_models; timm.
"""

from ..conversion import Layout, Names, Origin, same
from ..vit_steps import (
    CLASSIFIER,
    FINAL_NORM,
    GAMMA,
    HEADS,
    PLAIN_BLOCK,
    as_sequences,
    tokens,
)

TIMM_NAMES: dict[Names, Names] = {**PLAIN_BLOCK, **same("norm_pre")}
TIMM_REQUIRES = (r"norm_pre\.weight", r"pos_embed", r"blocks\.0\.attn\.qkv\.weight")
TIMM_UNUSED = {k: v for k, v in HEADS.items() if not k.startswith("attn_pool")}
BLOCK = "transformer.resblocks.#."
OPENAI_NAMES: dict[Names, Names] = {
    "conv1.weight": "patch_embed.proj.weight",
    "ln_pre": "norm_pre",
    f"{BLOCK}ln_1": "blocks.#.norm1",
    f"{BLOCK}ln_2": "blocks.#.norm2",
    f"{BLOCK}attn.in_proj_weight": "blocks.#.attn.qkv.weight",
    f"{BLOCK}attn.in_proj_bias": "blocks.#.attn.qkv.bias",
    f"{BLOCK}attn.out_proj": "blocks.#.attn.proj",
    f"{BLOCK}mlp.c_fc": "blocks.#.mlp.fc1",
    f"{BLOCK}mlp.c_proj": "blocks.#.mlp.fc2",
}
OPENAI_REQUIRES = (r"ln_pre\.weight", r"transformer\.resblocks\.0\.attn\.in_proj_weight")
OPENAI_UNUSED = {"ln_post.*": FINAL_NORM, "proj": CLASSIFIER}
OPENAI_TOKENS = ("class_embedding", "positional_embedding")
OPENAI_STEPS = (as_sequences(*OPENAI_TOKENS), tokens(OPENAI_TOKENS[0], table=OPENAI_TOKENS[1]))

CLIP = (
    Layout(
        TIMM_NAMES,
        TIMM_UNUSED,
        (*TIMM_REQUIRES, "cls_token"),
        takes=("cls_token", "pos_embed"),
        prepare=(tokens("cls_token"),),
    ),
    Layout(
        OPENAI_NAMES,
        OPENAI_UNUSED,
        (*OPENAI_REQUIRES, "class_embedding"),
        takes=OPENAI_TOKENS,
        prepare=OPENAI_STEPS,
    ),
)
# The larger ones have no class token, and layer scales.
PERCEPTION_ENCODER = (
    Layout(
        {**TIMM_NAMES, **GAMMA},
        HEADS,
        TIMM_REQUIRES,
        takes=("cls_token", "pos_embed"),
        prepare=(tokens("cls_token"),),
    ),
    Layout(
        {**OPENAI_NAMES, **{f"{BLOCK}ls_{i}.gamma": f"blocks.#.ls{i}.gamma" for i in (1, 2)}},
        {**OPENAI_UNUSED, "attn_pool.*": CLASSIFIER},
        OPENAI_REQUIRES,
        takes=OPENAI_TOKENS,
        prepare=OPENAI_STEPS,
    ),
)
COMPUTES = {"layer_norm_eps": 1e-5, "pre_norm_eps": 1e-5}
ORIGINS = (
    Origin("clip", "CLIP", CLIP, computes=COMPUTES),
    Origin(
        "clip-quickgelu",
        "CLIP with QuickGELU",
        CLIP,
        computes={**COMPUTES, "mlp": "quick_gelu"},
    ),
    Origin(
        "pe",
        "Perception Encoder",
        PERCEPTION_ENCODER,
        computes={**COMPUTES, "rope": "pe"},
    ),
)
