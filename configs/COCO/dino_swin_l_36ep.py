"""DINO with five scales on timm's Swin-L, a baseline, as DINO is published; see dino_comer_s_36ep.py."""

from ..common.models.dino_comer import five_scales, model
from ..common.models.timm_trunk import maps_on
from .dino_comer_s_36ep import dataloader, lr_multiplier, optimizer, train

five_scales(model)
maps_on(model, "swin_large_patch4_window12_384", drop_path_rate=0.2)

optimizer.params.lr_decay_rate = 1.0
optimizer.params.backbone_lr_factor = 0.1
