"""A baseline: ConvNeXt-T of timm with the head and recipe of faster_rcnn_comer_s_3x.py."""

from ..common.models.timm_trunk import fpn_on
from .faster_rcnn_comer_s_3x import dataloader, lr_multiplier, model, optimizer, train

fpn_on(model, "convnext_tiny", drop_path_rate=0.4)
optimizer.params.lr_decay_rate = 1.0
