"""The quickstart's heads, data and schedule on a small Swin of timm, of as many parameters as the ViT-CoMer."""

from ..common.models.timm_trunk import fpn_on
from .mask_rcnn_comer_digits import dataloader, dataset, lr_multiplier, model, optimizer, train

fpn_on(model, "swin_tiny_patch4_window7_224", drop_path_rate=0.0)
model.backbone.bottom_up.arguments = dict(
    embed_dim=16, depths=[1, 2, 2, 1], num_heads=[1, 2, 4, 8], window_size=4
)
train.output_dir = "output/quickstart/swin"
