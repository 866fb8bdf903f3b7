"""The authors' recipe for size B, 12 epochs. The paper starts from DINOv2 (ViT-B/14)."""

from ..common.models.sizes import comer_size
from .mask_rcnn_comer_s_1x import dataloader, lr_multiplier, model, optimizer, train

comer_size(model.backbone.bottom_up, "B")
optimizer.params.lr_decay_rate = 0.60
