"""The baseline: dino_comer.py's transformer on a plain ViT with ViTDet's simple feature pyramid, size B.

Another size is one edit: `vit_size(model.backbone.net, "S")`.
"""

from .dino_comer import model
from .mask_rcnn_vitdet import model as _mask_rcnn

model.backbone = _mask_rcnn.backbone
model.backbone.update(scale_factors=[2.0, 1.0, 0.5], top_block=None)  # p3 to p5
model.head.neck.update(
    in_features=["p3", "p4", "p5"], in_channels=["${....backbone.out_channels}"] * 3
)
