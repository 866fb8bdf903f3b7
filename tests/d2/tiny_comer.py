"""The detector of `tiny_mask_rcnn.py` on a tiny ViT-CoMer; a config for tests."""

from detectron2.config import LazyCall as L

from comer_d2 import ViTCoMer
from comer_d2.network import ViT

from .tiny_mask_rcnn import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

model.backbone.bottom_up = L(ViTCoMer)(
    vit=L(ViT)(
        embed_dim=24,
        depth=2,
        num_heads=3,
        window_size=0,
        window_block_indexes=[],
        pretrain_img_size=64,
        layer_scale_init=None,
    ),
    stem_width=8,
    interaction_indexes=[[0, 0], [1, 1]],
    deform_num_heads=3,
    num_extra_cti=1,
    norm="BN",
    out_features=["res2", "res3", "res4", "res5"],
)
train.max_iter = 1
