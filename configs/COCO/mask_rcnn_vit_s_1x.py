"""The plain ViT baseline of mask_rcnn_comer_s_1x.py: only the backbone differs."""

from ..common.models.mask_rcnn_vit import model
from ..common.models.sizes import vit_size
from .mask_rcnn_comer_s_1x import dataloader, lr_multiplier, optimizer, train

vit_size(model.backbone.net, "S")
model.backbone.net.pretrain_img_size = 592  # 37 x 37 positions, as there
