"""ViT-CoMer on Swin-T, the interactions at Swin's stages (Table 11), with the recipe of mask_rcnn_comer_s_1x.py."""

from ..common.models.mask_rcnn_comer import model
from ..common.models.timm_trunk import comer_on
from .mask_rcnn_comer_s_1x import dataloader, lr_multiplier, optimizer, train

# 384 channels at stride 16: the interactions are those of size S.
comer_on(model, "S", "swin_tiny_patch4_window7_224", drop_path_rate=0.2)
optimizer.params.lr_decay_rate = 1.0
