"""Co-DINO: dino_comer.py with five scales, and Faster R-CNN and ATSS that train with it."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.proposal_generator import RPN, StandardRPNHead
from detectron2.modeling.roi_heads import (
    FastRCNNConvFCHead,
    FastRCNNOutputLayers,
    StandardROIHeads,
)

from comer_d2.d2.modeling.collaborative import CollaborativeHeads
from comer_d2.heads.atss import ATSSHead
from comer_d2.heads.dino.collaborative import CollaborativeGenerator

from .dino_comer import five_scales, model

STRIDES = [4, 8, 16, 32, 64, 128]  # of the encoder's five maps, and of one more
MAPS = [f"m{i}" for i in range(len(STRIDES))]

five_scales(model)
model.criterion.quality = True
model.soft_nms_threshold = None  # the published evaluation: 0.8

_queries = L(CollaborativeGenerator)(
    dim="${..dim}",
    num_classes="${...head.proposals.num_classes}",
    least_queries=9,
    most_queries=300,
)
model.collaborative = L(CollaborativeHeads)(
    proposal_generator=L(RPN)(
        in_features=MAPS,
        head=L(StandardRPNHead)(in_channels="${...dim}", num_anchors=9),
        anchor_generator=L(DefaultAnchorGenerator)(
            sizes=[[4 * stride * 2 ** (i / 3) for i in range(3)] for stride in STRIDES],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=STRIDES,
            offset=0.0,
        ),
        anchor_matcher=L(Matcher)(
            thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=(4000, 1000),
        post_nms_topk=(1000, 1000),
        nms_thresh=0.7,
    ),
    roi_heads=L(StandardROIHeads)(
        num_classes="${...head.proposals.num_classes}",
        batch_size_per_image=512,
        positive_fraction=0.25,
        proposal_matcher=L(Matcher)(
            thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False
        ),
        box_in_features=MAPS[:5],
        box_pooler=L(ROIPooler)(
            output_size=7,
            scales=[1 / stride for stride in STRIDES[:5]],
            sampling_ratio=0,
            pooler_type="ROIAlignV2",
        ),
        box_head=L(FastRCNNConvFCHead)(
            input_shape=L(ShapeSpec)(channels="${....dim}", height=7, width=7),
            conv_dims=[],
            fc_dims=[1024, 1024],
        ),
        box_predictor=L(FastRCNNOutputLayers)(
            input_shape=L(ShapeSpec)(channels=1024),
            box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
            num_classes="${..num_classes}",
            box_reg_loss_type="giou",
            loss_weight={"loss_cls": 1.0, "loss_box_reg": 10.0},
        ),
    ),
    atss=L(ATSSHead)(
        num_classes="${...head.proposals.num_classes}",
        in_channels="${..dim}",
        channels="${..dim}",
        num_convs=1,
        strides=STRIDES,
        box_weight=2.0,
    ),
    roi_queries=_queries,
    atss_queries=_queries,
    dim="${..head.dim}",
    weight=12.0,  # 2, for each of the 6 decoder layers
)
