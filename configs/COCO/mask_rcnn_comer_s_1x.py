"""The authors' recipe for size S, 12 epochs. The paper starts from DINOv2 (ViT-S/14)."""

from ..common.data.coco_detr import dataloader
from ..common.models.mask_rcnn_comer import model
from ..common.models.sizes import comer_size
from ..common.optim import AdamW as optimizer
from ..common.schedule import iterations
from ..common.schedule import lr_multiplier_1x as lr_multiplier
from ..common.train import train

comer_size(model.backbone.bottom_up, "S")
# 37 x 37 positions: DINOv2's 518 / 14, at patch 16
model.backbone.bottom_up.vit.pretrain_img_size = 592

optimizer.lr = 1e-4  # for a batch of 16
optimizer.weight_decay = 0.05
optimizer.params.lr_decay_rate = 0.70

train.max_iter = lr_multiplier.scheduler.num_updates
train.eval_period = train.checkpointer.period = iterations(epochs=1)
train.checkpointer.max_to_keep = 3  # and the best
train.amp.enabled = True
train.amp.dtype = "float16"
train.init_checkpoint = ""  # from scratch
