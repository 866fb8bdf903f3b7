"""The baseline: the heads of mask_rcnn_comer.py on a plain ViT, size B.

The same ViT, with the same windows, under ViTDet's simple feature pyramid. (Not ViTDet's recipe: its
ViT has relative positions, its images are squares.) Another size is one edit:
`vit_size(model.backbone.net, "S")`.
"""

from .mask_rcnn_comer import model
from .plain_vit import pyramid_on_vit

model.backbone = pyramid_on_vit(model.backbone.bottom_up.vit, out_channels=256)
