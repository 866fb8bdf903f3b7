"""A baseline: DINOv3's ConvNeXt-T of timm with the head and recipe of mask_rcnn_comer_s_1x.py."""

from ..common.models.timm_trunk import fpn_on
from .mask_rcnn_comer_s_1x import dataloader, lr_multiplier, model, optimizer, train

fpn_on(model, "convnext_tiny.dinov3_lvd1689m", drop_path_rate=0.4)
optimizer.params.lr_decay_rate = 1.0
