"""ViT-CoMer-T Faster R-CNN with narrow heads, boxes only, for a CPU or a first try; see mask_rcnn_comer_t.py."""

from ..common.models.faster_rcnn_comer import remove_masks
from .mask_rcnn_comer_t import dataloader, dataset, lr_multiplier, model, optimizer, train

remove_masks(model)
dataloader.train.mapper.use_instance_mask = False
