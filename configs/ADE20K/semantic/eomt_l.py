"""EoMT-L on ADE20K at 512, 31 epochs; see ../../COCO/panoptic/eomt_l.py. No figure is quoted."""

from ...COCO.panoptic.eomt_l import lr_multiplier, model, optimizer, train
from ...common.data.ade20k_semantic import dataloader

model.backbone.update(num_classes=150, num_queries=100, square_pad=512)
model.stuff_classes = []
model.tasks = ["semantic"]

# 31 epochs of 20,210 images in batches of 16: 1263 it each
train.max_iter = 39_153
train.eval_period = train.checkpointer.period = 1_263
train.best_checkpointer.metric = "sem_seg/mIoU"
