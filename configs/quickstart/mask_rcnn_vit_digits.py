"""The baseline of the quickstart: the same ViT without CoMer, under the same heads, data and schedule."""

from ..common.models.plain_vit import pyramid_on_vit
from .mask_rcnn_comer_digits import dataloader, dataset, lr_multiplier, model, optimizer, train

model.backbone = pyramid_on_vit(model.backbone.bottom_up.vit, out_channels=64)
train.output_dir = "output/quickstart/vit"
