"""ATSS on tiny_proposals.py's backbone and data, where nothing is left to chance; a config for tests."""

from detectron2.config import LazyCall as L

from comer_d2.d2.modeling.dense_detector import DenseDetector, LastLevelP6P7
from comer_d2.heads.atss import ATSSHead

from .tiny_proposals import dataloader, lr_multiplier, optimizer, train  # noqa: F401
from .tiny_proposals import model as _proposals

model = L(DenseDetector)(
    backbone=_proposals.backbone,
    head=L(ATSSHead)(
        num_classes=2, in_channels=16, channels=16, num_convs=1, num_groups=4, anchor_scale=3.0
    ),
    pixel_mean=_proposals.pixel_mean,
    pixel_std=_proposals.pixel_std,
    test_score_thresh=0.0,
)
model.backbone.bottom_up.out_features = ["res3", "res4", "res5"]
model.backbone.top_block = L(LastLevelP6P7)(channels=16)
