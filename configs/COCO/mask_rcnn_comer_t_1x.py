"""Size T, 12 epochs. The paper starts from ImageNet-1K; its recipe is not released.

Ours: data, batch and schedule as for S; the optimizer of ViT-Adapter-T's 3x, whose settings for T
and L give the published parameter counts: no layer decay, and level_embed not decayed.
"""

from ..common.models.sizes import comer_size
from .mask_rcnn_comer_s_1x import dataloader, lr_multiplier, model, optimizer, train

comer_size(model.backbone.bottom_up, "T")
model.backbone.bottom_up.vit.pretrain_img_size = 224  # 14 x 14 positions: DeiT's

optimizer.params.lr_decay_rate = 1.0
optimizer.params.no_decay = ["pos_embed", "prefix_tokens", "level_embed"]
