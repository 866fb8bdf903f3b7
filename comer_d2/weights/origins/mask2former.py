"""The official Mask2Former's head; its backbone is another one, and not used.

Older files have two older names: the queries' content, and a pixel decoder without a prefix of its own.
"""

from ..conversion import Layout, Names, Origin, same

HEAD = "sem_seg_head."
PIXEL_DECODER, PREDICTOR = HEAD + "pixel_decoder.", HEAD + "predictor."
LAYER = "transformer.encoder.layers.#."
PIXEL_DECODER_PARTS = (
    *("input_proj.#.#", "transformer.level_embed", "mask_features"),
    *(f"{conv}_#{part}" for conv in ("adapter", "layer") for part in ("", ".norm")),
    *(f"{LAYER}{part}" for part in ("norm1", "norm2", "linear1", "linear2")),
    *(f"{LAYER}self_attn.{part}_proj" for part in ("value", "output")),
)
SAMPLING = f"{PIXEL_DECODER}{LAYER}self_attn.sampling"
PREDICTOR_NAMES: dict[Names, Names] = {
    **same(
        *(f"{PREDICTOR}{n}" for n in ("query_feat", "query_embed", "level_embed", "class_embed")),
        *(f"{PREDICTOR}{n}" for n in ("decoder_norm", "mask_embed.layers.#", "input_proj.#")),
        *(f"{PREDICTOR}transformer_ffn_layers.#.{n}" for n in ("linear1", "linear2", "norm")),
    ),
    f"{PREDICTOR}static_query": f"{PREDICTOR}query_feat",
}
for layer, attention in (("self", "self_attn"), ("cross", "multihead_attn")):
    at = f"{PREDICTOR}transformer_{layer}_attention_layers.#."
    PREDICTOR_NAMES |= same(f"{at}norm", f"{at}{attention}.out_proj")
    for leaf in ("weight", "bias"):
        projections = tuple(f"{at}{attention}.{part}_proj.{leaf}" for part in "qkv")
        PREDICTOR_NAMES[f"{at}{attention}.in_proj_{leaf}"] = projections


def layout(pixel_decoder: str) -> Layout:
    """The names, by the prefix that the pixel decoder's have."""
    sampling = tuple(
        f"{pixel_decoder}{LAYER}self_attn.{part}"
        for part in ("sampling_offsets", "attention_weights")
    )
    return Layout(
        {
            **PREDICTOR_NAMES,
            **{pixel_decoder + name: PIXEL_DECODER + name for name in PIXEL_DECODER_PARTS},
            sampling: SAMPLING,
            **same("criterion.empty_weight"),
        },
        {
            "backbone.*": "of another backbone: only the head is loaded",
            **dict.fromkeys(
                ("pixel_mean", "pixel_std"), "the config has the normalisation of images"
            ),
        },
        (r"sem_seg_head\.predictor\.transformer_cross_attention_layers\..*in_proj.*",),
        shares={SAMPLING: (2, 1)},
    )


ORIGINS = (
    Origin("mask2former", "Mask2Former", (layout(PIXEL_DECODER), layout(HEAD)), part="model"),
)
