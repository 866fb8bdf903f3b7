"""MMDetection 3's DINO: its neck and transformer; its backbone is another one, and not used.

Four scales of three maps or five of four, and six decoder layers, as all that are published. The one
difference that is not in weights: padding is never selected as a query here.
"""

from ..conversion import Layout, Names, Origin, under

PREDICTORS = {"cls_branches": "class_embed", "reg_branches": "bbox_embed"}


def deformable(attention: str) -> dict[Names, Names]:
    """Deformable attention's names in a layer."""
    sampling = (f"{attention}.sampling_offsets", f"{attention}.attention_weights")
    projections = (f"{attention}.{part}_proj" for part in ("value", "output"))
    names: dict[Names, Names] = {name: name for name in projections}
    return {sampling: f"{attention}.sampling"} | names


ENCODER_LAYER: dict[Names, Names] = {
    **deformable("self_attn"),
    **{f"norms.{i}": f"norm{i + 1}" for i in range(2)},
    "ffn.layers.0.0": "linear1",
    "ffn.layers.1": "linear2",
}
DECODER_LAYER: dict[Names, Names] = {
    **{
        f"self_attn.attn.in_proj_{leaf}": tuple(f"self_attn.{part}_proj.{leaf}" for part in "qkv")
        for leaf in ("weight", "bias")
    },
    "self_attn.attn.out_proj": "self_attn.out_proj",
    **deformable("cross_attn"),
    **{f"norms.{i}": f"norm{i + 1}" for i in range(3)},
    "ffn.layers.0.0": "linear1",
    "ffn.layers.1": "linear2",
}


def neck(maps: int) -> dict[Names, Names]:
    """The neck's names: a projection of every map, and one more of the coarsest."""
    there = [*(f"neck.convs.{i}" for i in range(maps)), "neck.extra_convs.0"]
    return {
        f"{name}.{module}": f"head.neck.projections.{i}.{j}"
        for i, name in enumerate(there)
        for j, module in enumerate(("conv", "gn"))
    }


def layout(maps: int, decoder_layers: int = 6) -> Layout:
    """The names of a model.

    Args:
        maps: of the backbone that are read.
        decoder_layers: predictors there have the decoder's layers' numbers, and then the proposals'.
    """
    return Layout(
        {
            **neck(maps),
            "level_embed": "head.encoder.level_embed",
            **under("encoder.layers.#.", "head.encoder.layers.#.", ENCODER_LAYER),
            "memory_trans_fc": "head.proposals.proj",
            "memory_trans_norm": "head.proposals.norm",
            "query_embedding": "head.query_embed",
            "dn_query_generator.label_embedding": "head.denoising.label_embed",
            **under("decoder.layers.#.", "head.decoder.layers.#.", DECODER_LAYER),
            "decoder.norm": "head.decoder.norm",
            "decoder.ref_point_head.layers.0": "head.decoder.box_position.0",
            "decoder.ref_point_head.layers.1": "head.decoder.box_position.2",
            **{
                f"bbox_head.{there}.{decoder_layers}{part}": f"head.proposals.{here}{part}"
                for there, here in PREDICTORS.items()
                for part in ("", ".0", ".2", ".4")
            },
            "bbox_head.cls_branches.#": "head.decoder.class_embed.#",
            "bbox_head.reg_branches.#.#": "head.decoder.bbox_embed.#.#",
        },
        {"backbone.*": "of another backbone: only the head is loaded"},
        (
            r"dn_query_generator\.label_embedding\.weight",
            rf"neck\.convs\.{maps - 1}\.conv\.weight",
            rf"bbox_head\.cls_branches\.{decoder_layers}\.weight",
        ),
        shares={
            f"head.{coder}.layers.#.{attention}.sampling": (2, 1)
            for coder, attention in (("encoder", "self_attn"), ("decoder", "cross_attn"))
        },
    )


ORIGINS = (Origin("dino", "MMDetection's DINO", (layout(3), layout(4)), part="model"),)
