"""The baseline of mask_rcnn_comer_s_frozen.py: the same heads on the same ViT under a simple feature pyramid."""

from ..common.models.plain_vit import pyramid_on_vit
from .mask_rcnn_comer_s_frozen import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone = pyramid_on_vit(
    model.backbone.bottom_up.vit, out_channels=model.backbone.out_channels
)
