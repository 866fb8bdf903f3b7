"""ViT-CoMer-T with a narrow Mask2Former on panoptic data of your own, for a CPU or a first try.

Paths as for mask2former_comer_s_panoptic.py.
"""

from ..common.models.mask2former_comer import detection_size, head_width
from .mask2former_comer_s_panoptic import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

detection_size(model, "T")
model.backbone.vit.pretrain_img_size = 224  # 14 x 14 positions: DeiT's and AugReg's
head_width(model, 128)
model.sem_seg_head.pixel_decoder.num_layers = 2
model.sem_seg_head.predictor.update(num_queries=50, num_layers=3)
model.criterion.num_points = 2048
optimizer.params.lr_decay_rate = 1.0
optimizer.lr = 4e-4  # for a batch of 16
train.clip_grad.max_norm = 0.1
train.amp.enabled = False
dataset.image_size = 320
