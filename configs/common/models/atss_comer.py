"""ATSS on ViT-CoMer, size B, with a pyramid of P3 to P7 as MMDetection builds it.

Another size is one edit: `comer_size(model.backbone.bottom_up, "S")`.
"""

from detectron2.config import LazyCall as L

from comer_d2.d2.modeling.dense_detector import DenseDetector, LastLevelP6P7
from comer_d2.heads.atss import ATSSHead

from .mask_rcnn_comer import model as _mask_rcnn

model = L(DenseDetector)(
    backbone=_mask_rcnn.backbone,
    head=L(ATSSHead)(num_classes=80, in_channels="${..backbone.out_channels}"),
    pixel_mean=_mask_rcnn.pixel_mean,
    pixel_std=_mask_rcnn.pixel_std,
    input_format=_mask_rcnn.input_format,
)
model.backbone.bottom_up.out_features = ["res3", "res4", "res5"]
model.backbone.top_block = L(LastLevelP6P7)(channels="${..out_channels}")
