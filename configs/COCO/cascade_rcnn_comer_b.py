"""Cascade R-CNN, size B: cascade_mask_rcnn_comer_b.py without masks."""

from ..common.models.faster_rcnn_comer import remove_masks
from .cascade_mask_rcnn_comer_b import dataloader, lr_multiplier, model, optimizer, train

remove_masks(model)
dataloader.train.mapper.use_instance_mask = False
dataloader.train.mapper.recompute_boxes = False  # cropped boxes: there are no masks to measure
