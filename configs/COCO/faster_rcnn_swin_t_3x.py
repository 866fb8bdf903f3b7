"""A baseline: Swin-T of timm with the head and recipe of faster_rcnn_comer_s_3x.py."""

from ..common.models.timm_trunk import fpn_on
from .faster_rcnn_comer_s_3x import dataloader, lr_multiplier, model, optimizer, train

fpn_on(model, "swin_tiny_patch4_window7_224", drop_path_rate=0.2)
optimizer.params.lr_decay_rate = 1.0
