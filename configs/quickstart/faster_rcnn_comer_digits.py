"""The quickstart's digits by boxes alone: mask_rcnn_comer_digits.py without masks."""

from ..common.models.faster_rcnn_comer import remove_masks
from .mask_rcnn_comer_digits import dataloader, dataset, lr_multiplier, model, optimizer, train

remove_masks(model)
dataloader.train.mapper.use_instance_mask = False
train.output_dir = "output/quickstart/faster_rcnn"
