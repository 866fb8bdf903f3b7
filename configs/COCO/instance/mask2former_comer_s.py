"""Mask2Former on ViT-CoMer-S in Mask2Former's recipe: 50 epochs, 1024 jitter. No result is published.

The backbone is the detection variant, with its windows, so that a detector's can be taken over.
Ours: learning rate and layer decay of the ViT as in the authors' detection, at the same 1e-4.
"""

from ...common.data.coco_mask2former import dataloader
from ...common.models.mask2former_comer import detection_size, model
from ...common.optim import Mask2FormerAdamW as optimizer
from ...common.schedule import steps
from ...common.train import train

detection_size(model, "S")
model.backbone.vit.pretrain_img_size = 592  # 37 x 37 positions: DINOv2's 518 / 14, at patch 16
model.sem_seg_head.predictor.num_classes = 80
model.tasks = ["instance"]

optimizer.lr = 1e-4  # for a batch of 16
optimizer.weight_decay = 0.05
optimizer.params.lr_decay_rate = 0.70

# 50 epochs of 118,000 images in batches of 16; steps after 8/9 and 26/27 of it
train.max_iter = 368_750
lr_multiplier = steps(train.max_iter, [327_778, 355_092], warmup_iters=10)
train.amp.enabled = True
train.amp.dtype = "float16"
train.clip_grad.max_norm = 0.01
train.best_checkpointer.metric = "segm/AP"
train.init_checkpoint = ""  # from scratch
