"""The detector of `tiny_mask_rcnn.py` on a tiny ViT-CoMer around a Swin; a config for tests."""

from detectron2.config import LazyCall as L

from comer_d2.network.timm_pyramid import TimmPyramid

from .tiny_comer import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

model.backbone.bottom_up.vit = L(TimmPyramid)(
    name="swin_tiny_patch4_window7_224",
    drop_path_rate=0.1,
    arguments=dict(embed_dim=12, depths=[1, 1, 2, 1], num_heads=[1, 2, 2, 4]),
)
model.backbone.bottom_up.update(interaction_indexes=None, vit_features="stages", deform_num_heads=4)
