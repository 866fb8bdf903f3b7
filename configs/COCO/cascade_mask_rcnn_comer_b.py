"""Cascade Mask R-CNN on ViT-CoMer-B in ViTDet's recipe: 1024 px scale jitter, 100 epochs, batch 64.

ViTDet starts from MAE. No result of this recipe with ViT-CoMer is published.
"""

from ..common.data.coco_lsj import dataloader
from ..common.models.cascade_mask_rcnn_comer import model
from ..common.optim import AdamW as optimizer
from ..common.schedule import lr_multiplier_100ep as lr_multiplier
from ..common.train import train

model.backbone.bottom_up.vit.drop_path_rate = 0.1

optimizer.lr = 1e-4  # for a batch of 64
optimizer.weight_decay = 0.1
optimizer.params.lr_decay_rate = 0.7

train.max_iter = lr_multiplier.scheduler.num_updates
train.checkpointer.max_to_keep = 3  # and the best
train.amp.enabled = True
train.amp.dtype = "float16"
train.ddp.fp16_compression = True
train.init_checkpoint = ""  # from scratch
