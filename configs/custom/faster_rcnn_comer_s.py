"""ViT-CoMer-S Faster R-CNN on COCO-format data of your own that has boxes only; paths as for Mask R-CNN.

See mask_rcnn_comer_s.py, from which everything but the masks is taken.
"""

from ..common.models.faster_rcnn_comer import remove_masks
from .mask_rcnn_comer_s import dataloader, dataset, lr_multiplier, model, optimizer, train

remove_masks(model)
dataloader.train.mapper.use_instance_mask = False
