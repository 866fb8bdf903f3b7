"""The plain ViT baseline of mask_rcnn_comer_b_1x.py: only the backbone differs."""

from ..common.models.sizes import vit_size
from .mask_rcnn_comer_b_1x import dataloader, lr_multiplier, optimizer, train
from .mask_rcnn_vit_s_1x import model

vit_size(model.backbone.net, "B")
