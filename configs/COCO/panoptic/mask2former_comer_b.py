"""Things and stuff; otherwise ../instance/mask2former_comer_b.py. Measured as PQ, mask AP and mIoU."""

from ...common.data.coco_mask2former import panoptic_dataloader as dataloader
from ...common.models.mask2former_comer import coco_panoptic
from ..instance.mask2former_comer_b import lr_multiplier, model, optimizer, train

coco_panoptic(model)
train.best_checkpointer.metric = "panoptic_seg/PQ"
