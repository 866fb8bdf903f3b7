"""mask_rcnn_vit_s_frozen.py without masks: the baseline of faster_rcnn_comer_s_frozen.py."""

from ..common.models.faster_rcnn_comer import remove_masks
from .mask_rcnn_vit_s_frozen import dataloader, dataset, lr_multiplier, model, optimizer, train

remove_masks(model)
dataloader.train.mapper.use_instance_mask = False
