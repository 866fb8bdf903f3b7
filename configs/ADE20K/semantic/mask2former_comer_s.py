"""Mask2Former on ViT-CoMer-S in Mask2Former's recipe: 512 crop, 160,000 it. No result is published.

Ours: learning rate and layer decay of the ViT as in the authors' detection, at the same 1e-4.
(Mask2Former gives its backbones a tenth of the rate; half of this one is new.) Start from DINOv2.
"""

from ...common.data.ade20k_semantic import dataloader
from ...common.models.mask2former_comer import mask2former_size, model
from ...common.optim import Mask2FormerAdamW as optimizer
from ...common.schedule import poly
from ...common.train import train

mask2former_size(model, "S")
model.backbone.vit.pretrain_img_size = 592  # 37 x 37 positions: DINOv2's 518 / 14, at patch 16

optimizer.lr = 1e-4  # for a batch of 16
optimizer.weight_decay = 0.05
optimizer.params.lr_decay_rate = 0.70

train.max_iter = 160_000
lr_multiplier = poly(power=0.9)
train.amp.enabled = True
train.amp.dtype = "float16"
train.clip_grad.max_norm = 0.01
train.best_checkpointer.metric = "sem_seg/mIoU"
train.init_checkpoint = ""  # from scratch
