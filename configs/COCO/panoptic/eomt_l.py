"""EoMT-L on DINOv2 with registers at 640, 12 epochs. Published: 56.0 PQ."""

from ...common.data.coco_lsj import jitter_crop
from ...common.data.coco_mask2former import panoptic_dataloader as dataloader
from ...common.models.eomt import dinov2_with_registers, model
from ...common.optim import AdamW as optimizer
from ...common.schedule import poly
from ...common.train import train

jitter_crop(dataloader, 640)
model.backbone.square_pad = 640
dinov2_with_registers(model.backbone.vit)

optimizer.lr = 1e-4  # for a batch of 16
optimizer.weight_decay = 0.05
optimizer.params.lr_decay_rate = 0.80

# 12 epochs of 118,287 images in batches of 16: 7393 it each
train.max_iter = 88_716
# Published: 500 it for what is new while the ViT rests, then 1000 for the ViT. Here: one for all.
lr_multiplier = poly(power=0.9, warmup_iters=1500)
train.eval_period = train.checkpointer.period = 7_393
train.checkpointer.max_to_keep = 3  # and the best
train.amp.enabled = True
train.amp.dtype = "float16"
train.clip_grad.max_norm = 0.01
train.best_checkpointer.metric = "panoptic_seg/PQ"
train.init_checkpoint = ""  # from scratch
