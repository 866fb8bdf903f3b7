"""The plain ViT-S under Mask2Former, the recipe of mask2former_comer_s.py."""

from ...common.models.mask2former_comer import coco_panoptic
from ...common.models.mask2former_vit import model
from ...common.models.sizes import vit_size
from .mask2former_comer_s import dataloader, lr_multiplier, optimizer, train

vit_size(model.backbone.net, "S")
model.backbone.net.update(window_size=14, pretrain_img_size=592)  # as there
coco_panoptic(model)
model.views = None
