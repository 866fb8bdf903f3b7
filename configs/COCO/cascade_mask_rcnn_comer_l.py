"""Cascade Mask R-CNN on ViT-CoMer-L as ViTDet trains its L."""

from ..common.models.sizes import comer_size
from .cascade_mask_rcnn_comer_b import dataloader, lr_multiplier, model, optimizer, train

comer_size(model.backbone.bottom_up, "L")
model.backbone.bottom_up.vit.drop_path_rate = 0.4
optimizer.params.lr_decay_rate = 0.8
