"""A baseline: Swin-T of timm, a tenth of the rate, with the recipe of mask2former_comer_s.py."""

from ...common.models.timm_trunk import maps_on
from .mask2former_comer_s import dataloader, lr_multiplier, model, optimizer, train

maps_on(model, "swin_tiny_patch4_window7_224", drop_path_rate=0.2)
optimizer.params.update(lr_decay_rate=1.0, backbone_lr_factor=0.1)
