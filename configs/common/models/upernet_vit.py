"""The baseline: UPerNet on upernet_comer.py's ViT alone, under ViTDet's simple feature pyramid, size B.

Another size is one edit of the ViT: `vit_size(model.backbone.net, "S")`.
"""

from .plain_vit import pyramid_on_vit
from .upernet_comer import model

model.backbone = pyramid_on_vit(model.backbone.vit, out_channels=256)
model.backbone.top_block = None
model.sem_seg_head.update(
    in_features=["p2", "p3", "p4", "p5"], in_channels=[256] * 4, auxiliary_feature="p4"
)
