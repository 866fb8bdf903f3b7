"""Where weights come from: one file a family, with its table of names and what it computes.

The order is that of titles: where tables of families that compute alike fit, the first names it.
"""

from . import (
    beit,
    clip,
    dinov3,
    eva02,
    mask2former,
    mmdetection,
    mmdetection_dense,
    mmdetection_dino,
    mmsegmentation,
    plain_vit,
    rope_vit,
    uni_perceiver,
    vit_comer,
)

ORIGINS = (
    *mmdetection.ORIGINS,
    *mmdetection_dense.ORIGINS,
    *mmdetection_dino.ORIGINS,
    *mmsegmentation.ORIGINS,
    *vit_comer.ORIGINS,
    *mask2former.ORIGINS,
    *plain_vit.ORIGINS,
    *beit.ORIGINS,
    *clip.ORIGINS,
    *dinov3.ORIGINS,
    *eva02.ORIGINS,
    *rope_vit.ORIGINS,
    *uni_perceiver.ORIGINS,
)
# Families of pretrained ViTs, by which train.init_family asks for them.
FAMILIES = tuple(origin.family for origin in ORIGINS if origin.part == "vit")
