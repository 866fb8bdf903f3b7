"""DINO on ConvNeXt-T of timm, a baseline; a tenth of the rate; see dino_comer_s_12ep.py."""

from ..common.models.timm_trunk import maps_on
from .dino_comer_s_12ep import dataloader, lr_multiplier, model, optimizer, train

maps_on(model, "convnext_tiny", drop_path_rate=0.4)
optimizer.params.update(lr_decay_rate=1.0, backbone_lr_factor=0.1)
