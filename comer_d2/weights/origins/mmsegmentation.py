"""The authors' UPerNet, of MMSegmentation."""

from ..conversion import Names, Origin, under
from .vit_comer import VARIANTS, layout


def conv_norm(official: str, here: str) -> dict[Names, Names]:
    """A convolution and its norm, as the two sides call them."""
    return {f"{official}.conv": f"{here}.conv", f"{official}.bn": f"{here}.norm"}


DECODER: dict[Names, Names] = {
    **conv_norm("psp_modules.#.1", "pooling.branches.#"),
    **conv_norm("bottleneck", "pooling.fuse"),
    **conv_norm("lateral_convs.#", "laterals.#"),
    **conv_norm("fpn_convs.#", "outputs.#"),
    **conv_norm("fpn_bottleneck", "fuse"),
    "conv_seg": "classifier",
}
AUXILIARY: dict[Names, Names] = {**conv_norm("convs.0", "conv"), "conv_seg": "classifier"}
UPERNET = {
    **under("decode_head.", "sem_seg_head.decoder.", DECODER),
    **under("auxiliary_head.", "sem_seg_head.auxiliary.", AUXILIARY),
}
ORIGINS = (
    Origin(
        "upernet",
        "the authors' UPerNet",
        tuple(
            layout(table, "backbone.", "backbone.", UPERNET, requires=(r"decode_head\..*",))
            for table in VARIANTS
        ),
        part="model",
    ),
)
