"""The plain ViT: DeiT, AugReg, MAE, DINO, DINOv2, TIPSv2, SigLIP 2 and others compute alike.

DINOv2: facebookresearch/dinov2, and Hugging Face transformers. AugReg: google-research/vision_transformer.
"""

from ..conversion import Conversion, Layout, Origin
from ..vit_steps import (
    CLASSIFIER,
    FINAL_NORM,
    GAMMA,
    GATED_MLP,
    HEADS,
    LAYER_SCALE,
    MASK_TOKEN,
    PLAIN_BLOCK,
    tokens,
    unpack_gates,
)

UNUSED = {**HEADS, "pre_logits.fc.*": CLASSIFIER, "decoder_*": "MAE's decoder"}
TOKENS = ("cls_token", "dist_token", "reg_token", "register_tokens")
TIMM = Layout(
    {**PLAIN_BLOCK, **GATED_MLP, **LAYER_SCALE},
    UNUSED,
    (r"pos_embed", r"patch_embed\.proj\.bias", r"blocks\.0\.norm1\.weight", r"(cls|reg)_token"),
    takes=(*TOKENS, "pos_embed"),
    prepare=(tokens(*TOKENS), unpack_gates),
)
WITHOUT_CLASS_TOKEN = Layout(
    TIMM.names,
    UNUSED,
    # The last tells it from timm's ViT with norms after the branches, which has neither.
    (*TIMM.requires[:3], r"blocks\.0\.(attn\.qkv\.bias|ls1\.gamma)"),
    takes=("pos_embed",),
    prepare=(tokens(),),
)
DEIT3 = Layout(
    {**PLAIN_BLOCK, **GAMMA},
    UNUSED,
    (r"cls_token", r"pos_embed", r"blocks\.0\.attn\.qkv\.bias", r"blocks\.0\.gamma_1"),
    takes=("cls_token", "pos_embed"),
    prepare=(tokens("cls_token"),),
)
DINOV2 = Layout(
    {
        **PLAIN_BLOCK,
        **LAYER_SCALE,
        "blocks.#.mlp.w12": ("blocks.#.mlp.fc1_g", "blocks.#.mlp.fc1_x"),
        "blocks.#.mlp.w3": "blocks.#.mlp.fc2",
    },
    UNUSED,
    (*TIMM.requires, r"blocks\.0\.ls1\.gamma", r"mask_token"),
    takes=TIMM.takes,
    prepare=(tokens(*TOKENS),),
)
LAYER = "encoder.layer.#."
EMBEDDINGS = tuple(f"embeddings.{n}" for n in ("cls_token", "register_tokens"))
TRANSFORMERS = Layout(
    {
        "embeddings.patch_embeddings.projection": "patch_embed.proj",
        **{f"{LAYER}norm{i}": f"blocks.#.norm{i}" for i in (1, 2)},
        **{f"{LAYER}layer_scale{i}.lambda1": f"blocks.#.ls{i}.gamma" for i in (1, 2)},
        tuple(
            f"{LAYER}attention.attention.{part}" for part in ("query", "key", "value")
        ): "blocks.#.attn.qkv",
        f"{LAYER}attention.output.dense": "blocks.#.attn.proj",
        **{f"{LAYER}mlp.fc{i}": f"blocks.#.mlp.fc{i}" for i in (1, 2)},
        f"{LAYER}mlp.weights_in": ("blocks.#.mlp.fc1_g", "blocks.#.mlp.fc1_x"),
        f"{LAYER}mlp.weights_out": "blocks.#.mlp.fc2",
    },
    {"embeddings.mask_token": MASK_TOKEN, "layernorm.*": FINAL_NORM, "classifier.*": CLASSIFIER},
    (
        r"encoder\.layer\.0\.attention\.attention\.query\.weight",
        r"encoder\.layer\.0\.layer_scale1\.lambda1",
        r"embeddings\.cls_token",
    ),
    takes=(*EMBEDDINGS, "embeddings.position_embeddings"),
    prepare=(tokens(*EMBEDDINGS, table="embeddings.position_embeddings"),),
)


def from_jax(conversion: Conversion) -> None:
    """Kernels as torch has them: outputs first, heads side by side."""
    for name, tensor in conversion.left.items():
        if name.endswith("/bias"):
            conversion.left[name] = tensor.flatten()
        elif name.endswith("/kernel") and tensor.ndim == 4:
            conversion.left[name] = tensor.permute(3, 2, 0, 1)
        elif name.endswith("/out/kernel") and tensor.ndim == 3:
            conversion.left[name] = tensor.flatten(0, 1).T
        elif name.endswith("/kernel") and tensor.ndim > 1:
            conversion.left[name] = tensor.flatten(1).T


BLOCK = "Transformer/encoderblock_#/"
ATTENTION = f"{BLOCK}MultiHeadDotProductAttention_1/"
MLP = f"{BLOCK}MlpBlock_3/Dense_"
JAX = Layout(
    {
        f"{old}/{leaf}": f"{new}.{'bias' if leaf == 'bias' else 'weight'}"
        for old, new in {
            "embedding": "patch_embed.proj",
            f"{BLOCK}LayerNorm_0": "blocks.#.norm1",
            f"{BLOCK}LayerNorm_2": "blocks.#.norm2",
            f"{ATTENTION}out": "blocks.#.attn.proj",
            f"{MLP}0": "blocks.#.mlp.fc1",
            f"{MLP}1": "blocks.#.mlp.fc2",
        }.items()
        for leaf in ("scale" if "Norm" in old else "kernel", "bias")
    }
    | {
        tuple(f"{ATTENTION}{part}/{leaf}" for part in ("query", "key", "value")): new
        for leaf, new in (
            ("kernel", "blocks.#.attn.qkv.weight"),
            ("bias", "blocks.#.attn.qkv.bias"),
        )
    },
    {
        "Transformer/encoder_norm/*": FINAL_NORM,
        **dict.fromkeys(("head/*", "pre_logits/*"), CLASSIFIER),
    },
    (r"embedding/kernel", r"Transformer/encoderblock_0/LayerNorm_0/scale"),
    takes=("cls", "Transformer/posembed_input/pos_embedding"),
    prepare=(from_jax, tokens("cls", table="Transformer/posembed_input/pos_embedding")),
)
ORIGINS = (
    Origin("dinov2", "DINOv2", (DINOV2, TRANSFORMERS)),
    Origin("augreg", "AugReg, by JAX's names", (JAX,)),
    Origin(
        "vit",
        "plain ViT (DeiT, AugReg, MAE, DINO, DINOv2, SigLIP 2: all load alike)",
        (TIMM, WITHOUT_CLASS_TOKEN),
    ),
    Origin("deit3", "DeiT-III", (DEIT3, TIMM)),
    Origin(
        "siglip2-tanh",
        "SigLIP 2 with GELU by its tanh formula",
        (WITHOUT_CLASS_TOKEN,),
        computes={"mlp": "gelu_tanh"},
    ),
)
