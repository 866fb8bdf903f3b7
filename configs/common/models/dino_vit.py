"""The baseline: dino_comer.py's transformer on its ViT alone, under ViTDet's simple feature pyramid, size B.

Another size is one edit: `vit_size(model.backbone.net, "S")`.
"""

from .dino_comer import model
from .plain_vit import pyramid_on_vit

model.backbone = pyramid_on_vit(model.backbone.vit, out_channels=256)
model.backbone.update(scale_factors=(2.0, 1.0, 0.5), top_block=None)  # p3 to p5
model.head.neck.update(
    in_features=["p3", "p4", "p5"], in_channels=["${....backbone.out_channels}"] * 3
)
