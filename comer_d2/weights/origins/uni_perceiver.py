"""Uni-Perceiver's image encoder: a video of one frame; and its first release, with BERT's blocks.

Names: fundamentalvision/Uni-Perceiver; ViT-Adapter's releases v0.3.1 and v0.1.1.
"""

from ..conversion import Conversion, Layout, Origin
from ..files import WeightsError
from ..vit_steps import token_rows

TYPE = "visual_embed.embeddings_type.weight"


def add_first_frame(prefix: str) -> Layout:
    """A layout whose positions are of space and time, under a prefix."""

    def add(conversion: Conversion) -> None:
        names = [f"{prefix}.{kind}_pos_embed.weight" for kind in ("spatial", "temporal")]
        space, time = (conversion.take(name) for name in names)
        if space.ndim != 2 or time.ndim != 2 or not len(time) or space.shape[1] != time.shape[1]:
            raise WeightsError(
                f"{conversion.title}: spatial and temporal positions must have shapes (n, D) and "
                f"(t, D), got {tuple(space.shape)} and {tuple(time.shape)}"
            )
        token_rows(names[0], len(space), 0)
        conversion.put("pos_embed", (space + time[:1]).unsqueeze(0))
        conversion.note(names[0], space.numel(), "pos_embed")
        note = "the first frame's, added to every row"
        conversion.note(names[1], time.shape[1], "pos_embed", note)
        conversion.note(names[1], time[1:].numel(), None, "of the other frames of a video")

    kind = prefix.split(".")[0]
    encoder = "fused_encoder.layers.#." if kind == "video_embed" else "layers.#."
    return Layout(
        {
            "video_embed.embeddings"
            if kind == "video_embed"
            else f"{prefix}.proj": "patch_embed.proj",
            f"{kind}.embeddings_norm": "norm_pre",
            **{f"{encoder}norm{i}": f"blocks.#.norm{i}" for i in (1, 2)},
            **{
                f"{encoder}self_attn.in_proj{dot}{leaf}": f"blocks.#.attn.qkv.{leaf}"
                for dot in "._"
                for leaf in ("weight", "bias")
            },
            f"{encoder}self_attn.out_proj": "blocks.#.attn.proj",
            **{f"{encoder}linear{i}": f"blocks.#.mlp.fc{i}" for i in (1, 2)},
            **{f"{encoder}gamma_{i}": f"blocks.#.ls{i}.gamma" for i in (1, 2)},
        },
        {
            **dict.fromkeys(("token_embed.*", "loss_prepare.*"), "beside the image encoder"),
            f"{kind}.embeddings_type.weight": (
                "its authors added it to the bias of the patch embedding"
            ),
        },
        (rf"{kind}\.embeddings_norm\.weight", r".*spatial_pos_embed\.weight"),
        takes=tuple(f"{prefix}.{axis}_pos_embed.weight" for axis in ("spatial", "temporal")),
        prepare=(add,),
    )


POSITIONS = "visual_embed.patch_embed.pos_embed.weight"


def add_type(conversion: Conversion) -> None:
    """One type for every patch, so it can be part of every position."""
    position, kind = conversion.take(POSITIONS), conversion.take(TYPE)
    if position.ndim != 2 or kind.shape != (1, position.shape[-1]):
        raise WeightsError(
            f"{conversion.title}: '{TYPE}' must have shape (1, D) and the positions (n, D), got "
            f"{tuple(kind.shape)} and {tuple(position.shape)}"
        )
    conversion.put("pos_embed", (position + kind).unsqueeze(0))
    conversion.note(POSITIONS, position.numel(), "pos_embed")
    conversion.note(TYPE, kind.numel(), "pos_embed", "added to every row")


LAYER = "layers.#."
POST_NORM = Layout(
    {
        "visual_embed.patch_embed.proj": "patch_embed.proj",
        "visual_embed.embeddings_norm": "norm_pre",
        tuple(
            f"{LAYER}attention.self.{part}" for part in ("query", "key", "value")
        ): "blocks.#.attn.qkv",
        f"{LAYER}attention.output.dense": "blocks.#.attn.proj",
        f"{LAYER}attention.output.LayerNorm": "blocks.#.norm1",
        f"{LAYER}intermediate.dense": "blocks.#.mlp.fc1",
        f"{LAYER}output.dense": "blocks.#.mlp.fc2",
        f"{LAYER}output.LayerNorm": "blocks.#.norm2",
    },
    requires=(r"visual_embed\.patch_embed\.pos_embed\.weight",),
    takes=(POSITIONS, TYPE),
    prepare=(add_type,),
)
ORIGINS = (
    Origin(
        "uni-perceiver",
        "Uni-Perceiver",
        (
            add_first_frame("video_embed.embeddings_st_pos"),
            add_first_frame("visual_embed.patch_embed"),
        ),
        computes={"layer_norm_eps": 1e-5, "pre_norm_eps": 1e-5},
    ),
    Origin(
        "uni-perceiver-post-norm",
        "Uni-Perceiver, the first, with norms after the sums",
        (POST_NORM,),
        computes={"pre_norm_eps": 1e-12, "post_norm": True},
    ),
)
