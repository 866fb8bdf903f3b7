"""A baseline: ConvNeXt-T of timm with the recipe of mask_rcnn_comer_s_1x.py."""

from ..common.models.mask_rcnn_comer import model
from ..common.models.timm_trunk import fpn_on
from .mask_rcnn_comer_s_1x import dataloader, lr_multiplier, optimizer, train

fpn_on(model, "convnext_tiny", drop_path_rate=0.4)
optimizer.params.lr_decay_rate = 1.0
