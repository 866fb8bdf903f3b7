"""The plain ViT-S under Mask2Former, the recipe of mask2former_comer_s.py."""

from ...common.models.mask2former_vit import model
from ...common.models.sizes import vit_size
from .mask2former_comer_s import dataloader, lr_multiplier, optimizer, train

vit_size(model.backbone.net, "S")
# 37 x 37 positions and global attention, as there
model.backbone.net.update(window_size=0, window_block_indexes=[], pretrain_img_size=592)
