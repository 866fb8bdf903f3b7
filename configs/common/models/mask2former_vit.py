"""The challenger without CoMer: Mask2Former on a plain ViT and ViTDet's simple feature pyramid, size B, 150 classes.

Another size is one edit of the ViT: `vit_size(model.backbone.net, "S")`.
"""

from .mask2former_comer import model
from .plain_vit import pyramid_on_vit

_vit = model.backbone.vit
model.backbone = pyramid_on_vit(_vit, out_channels=256)
model.backbone.top_block = None
model.sem_seg_head.pixel_decoder.update(
    in_features=["p2", "p3", "p4", "p5"],
    in_channels=[256] * 4,
    transformer_in_features=["p3", "p4", "p5"],
)
