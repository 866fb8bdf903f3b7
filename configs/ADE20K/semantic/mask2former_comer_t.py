"""Size T; see mask2former_comer_s.py. Start from DeiT-T."""

from ...common.models.mask2former_comer import mask2former_size
from .mask2former_comer_s import dataloader, lr_multiplier, model, optimizer, train

mask2former_size(model, "T")
model.backbone.vit.pretrain_img_size = 224  # 14 x 14 positions: DeiT's
optimizer.params.lr_decay_rate = 1.0
