"""Faster R-CNN, size T, 36 epochs: mask_rcnn_comer_t_3x.py without masks."""

from ..common.models.faster_rcnn_comer import remove_masks
from .mask_rcnn_comer_t_3x import dataloader, lr_multiplier, model, optimizer, train

remove_masks(model)
dataloader.train.mapper.use_instance_mask = False
