"""ATSS on the quickstart's digits: the backbone, data and schedule of mask_rcnn_comer_digits.py."""

from ..common.models.atss_comer import model
from .faster_rcnn_comer_digits import dataloader, dataset, lr_multiplier, optimizer, train
from .faster_rcnn_comer_digits import model as _faster_rcnn

model.backbone.bottom_up = _faster_rcnn.backbone.bottom_up
model.backbone.bottom_up.out_features = ["res3", "res4", "res5"]
model.backbone.out_channels = _faster_rcnn.backbone.out_channels

# Digits are 28 to 52 px: anchors of 32 and 64 px on P3 and P4.
model.head.update(
    num_classes="${dataset.num_classes}", channels=64, num_convs=2, num_groups=8, anchor_scale=4.0
)
train.output_dir = "output/quickstart/atss"
