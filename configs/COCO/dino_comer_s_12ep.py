"""DINO on ViT-CoMer-S, 12 epochs, as DINO is published; layer decay as the authors' Mask R-CNN of size S."""

from ..common.data.coco_detr import dataloader
from ..common.models.dino_comer import dino_size, model
from ..common.optim import AdamW as optimizer
from ..common.schedule import iterations, steps
from ..common.train import train

dino_size(model, "S")
# 37 x 37 positions: DINOv2's 518 / 14, at patch 16
model.backbone.vit.pretrain_img_size = 592

# DETR's multi-scale resize and crop, without ViT-CoMer's crop to 1024 after them.
dataloader.train.mapper.augmentations.pop()

optimizer.lr = 1e-4  # for a batch of 16
optimizer.weight_decay = 1e-4
optimizer.params.lr_decay_rate = 0.70  # in place of a tenth for the whole backbone
train.clip_grad.max_norm = 0.1

# 87,950 it, a tenth of the rate after 11 epochs, 500 it of warm-up
lr_multiplier = steps(iterations(12), [iterations(11)], warmup_iters=500)
train.max_iter = lr_multiplier.scheduler.num_updates
train.eval_period = train.checkpointer.period = iterations(epochs=1)
train.checkpointer.max_to_keep = 3  # and the best
train.amp.enabled = True
train.init_checkpoint = ""  # from scratch
