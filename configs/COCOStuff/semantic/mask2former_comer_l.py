"""The authors' recipe: size L on BEiTv2, 896 crop, 80,000 it. Published: 52.7 mIoU, 633.6 M."""

from ...common.data.ade20k_semantic import dataloader, semantic_crop
from ...common.models.mask2former_comer import beit_large, model
from ...common.optim import Mask2FormerAdamW as optimizer
from ...common.schedule import poly
from ...common.train import train

dataloader.train.dataset.names = "coco_2017_train_stuff_164k"
dataloader.test.dataset.names = "coco_2017_val_stuff_164k"
semantic_crop(dataloader, 896)

beit_large(model, side=896)
model.sem_seg_head.predictor.num_classes = 171

optimizer.lr = 2e-5  # for a batch of 16
optimizer.weight_decay = 0.05
optimizer.params.lr_decay_rate = 0.90

train.max_iter = 80_000
lr_multiplier = poly(power=1.0, warmup_iters=1500)
train.amp.enabled = True
train.amp.dtype = "bfloat16"
train.clip_grad.max_norm = 0.01  # Mask2Former's; the released config does not say
train.best_checkpointer.metric = "sem_seg/mIoU"
train.init_checkpoint = ""  # from scratch
