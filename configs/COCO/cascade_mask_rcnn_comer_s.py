"""Cascade Mask R-CNN on ViT-CoMer-S in the manner of ViTDet, which has no S: the settings of B."""

from ..common.models.sizes import comer_size
from .cascade_mask_rcnn_comer_b import dataloader, lr_multiplier, model, optimizer, train

comer_size(model.backbone.bottom_up, "S")
model.backbone.bottom_up.vit.drop_path_rate = 0.1
