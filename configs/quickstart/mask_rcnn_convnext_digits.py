"""The quickstart's heads, data and schedule on a small ConvNeXt of timm, of as many parameters as the ViT-CoMer."""

from ..common.models.timm_trunk import fpn_on
from .mask_rcnn_comer_digits import dataloader, dataset, lr_multiplier, model, optimizer, train

fpn_on(model, "convnext_tiny", drop_path_rate=0.0)
model.backbone.bottom_up.arguments = dict(dims=[16, 32, 64, 128], depths=[2, 2, 3, 2])
train.output_dir = "output/quickstart/convnext"
