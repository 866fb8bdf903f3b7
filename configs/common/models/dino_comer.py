"""DINO with four scales on ViT-CoMer, size B.

Another size is one edit, `dino_size(model, "S")`; so are five scales, `five_scales(model)`.
"""

from detectron2.config import LazyCall as L

from comer_d2.d2.modeling.dino import DINO
from comer_d2.heads.dino import (
    BoxMatcher,
    ChannelMapper,
    DenoisingGenerator,
    DINOCriterion,
    DINODecoder,
    DINOEncoder,
    DINOHead,
    ProposalHead,
)

from .mask_rcnn_comer import model as _mask_rcnn
from .sizes import comer_size


def dino_size(model, size):
    """Gives backbone and neck one of the sizes; the transformer is the same for all."""
    comer_size(model.backbone, size)
    neck = model.head.neck
    neck.in_channels = [model.backbone.vit.embed_dim] * len(neck.in_features)


def five_scales(model):
    """Strides 4 to 64 instead of 8 to 64."""
    model.backbone.out_features = ["res2", "res3", "res4", "res5"]
    neck = model.head.neck
    neck.update(
        in_features=model.backbone.out_features,
        in_channels=[*neck.in_channels, neck.in_channels[-1]],
        num_levels=5,
    )


model = L(DINO)(
    backbone=_mask_rcnn.backbone.bottom_up,
    head=L(DINOHead)(
        neck=L(ChannelMapper)(
            in_features=["res3", "res4", "res5"],
            in_channels=[768] * 3,
            dim="${..dim}",
            num_levels=4,
            norm_groups=32,
        ),
        encoder=L(DINOEncoder)(
            dim="${..dim}",
            num_levels="${..neck.num_levels}",
            num_layers=6,
            num_heads=8,
            ffn_dim=2048,
            use_act_checkpoint=False,
        ),
        # The classes of all parts: model.head.proposals.num_classes=7
        proposals=L(ProposalHead)(dim="${..dim}", num_classes=80),
        decoder=L(DINODecoder)(
            dim="${..dim}",
            num_classes="${..proposals.num_classes}",
            num_levels="${..neck.num_levels}",
            num_layers=6,
            num_heads=8,
            ffn_dim=2048,
            use_act_checkpoint=False,
        ),
        denoising=L(DenoisingGenerator)(
            dim="${..dim}",
            num_classes="${..proposals.num_classes}",
            num_queries=100,
            label_noise=0.5,
            box_noise=1.0,
        ),
        num_queries=900,
        dim=256,
    ),
    criterion=L(DINOCriterion)(
        matcher=L(BoxMatcher)(cost_class=2.0, cost_bbox=5.0, cost_giou=2.0),
        class_weight=1.0,
        bbox_weight=5.0,
        giou_weight=2.0,
        quality=False,
    ),
    collaborative=None,
    pixel_mean=_mask_rcnn.pixel_mean,
    pixel_std=_mask_rcnn.pixel_std,
    input_format="RGB",
    max_detections_per_image=300,
    soft_nms_threshold=None,
)
model.backbone.out_features = ["res3", "res4", "res5"]
