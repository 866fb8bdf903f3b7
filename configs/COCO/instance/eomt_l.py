"""EoMT-L for instances, 12 epochs; see ../panoptic/eomt_l.py. Published: 45.2 mask AP."""

from ...common.data.coco_lsj import jitter_crop
from ...common.data.coco_mask2former import dataloader
from ..panoptic.eomt_l import lr_multiplier, model, optimizer, train

jitter_crop(dataloader, 640)
model.backbone.num_classes = 80
model.stuff_classes = []
model.tasks = ["instance"]
train.best_checkpointer.metric = "segm/AP"
