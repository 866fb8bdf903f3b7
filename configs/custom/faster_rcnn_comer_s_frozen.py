"""mask_rcnn_comer_s_frozen.py without masks, for data that has boxes only."""

from ..common.models.faster_rcnn_comer import remove_masks
from .mask_rcnn_comer_s_frozen import dataloader, dataset, lr_multiplier, model, optimizer, train

remove_masks(model)
dataloader.train.mapper.use_instance_mask = False
