"""The authors' Mask R-CNN, of MMDetection 2 and 3: Detectron2's ``GeneralizedRCNN`` by other names.

What is not in weights is the same in the configs here (tests/d2/test_weights_official.py shows each
against numbers of MMDetection): class order with the background last, the order of anchors and box
deltas, fc1's flattening, RoIAlign, level assignment, thresholds, RGB with ImageNet's mean and
deviation. Three differences are left, all too small to show in detections: MMDetection also limits by
how much a box delta shrinks a box (to 1/62.5, as both limit its growth); a box less than 6e-5 pixels
smaller than where a pyramid level begins belongs to that level there and to the one before here; and
images are resized by OpenCV there and Pillow here, which differ by at most one of 255 where they
enlarge, as they do all images of COCO.
"""

from ..conversion import Names, Origin
from .vit_comer import VARIANTS, layout

FPN: dict[Names, Names] = {
    **{f"neck.lateral_convs.{i}.conv": f"backbone.fpn_lateral{i + 2}" for i in range(4)},
    **{f"neck.fpn_convs.{i}.conv": f"backbone.fpn_output{i + 2}" for i in range(4)},
}
MASK_RCNN: dict[Names, Names] = {
    **FPN,
    "rpn_head.rpn_conv": "proposal_generator.rpn_head.conv",
    "rpn_head.rpn_cls": "proposal_generator.rpn_head.objectness_logits",
    "rpn_head.rpn_reg": "proposal_generator.rpn_head.anchor_deltas",
    "roi_head.bbox_head.shared_fcs.0": "roi_heads.box_head.fc1",
    "roi_head.bbox_head.shared_fcs.1": "roi_heads.box_head.fc2",
    "roi_head.bbox_head.fc_cls": "roi_heads.box_predictor.cls_score",
    "roi_head.bbox_head.fc_reg": "roi_heads.box_predictor.bbox_pred",
    **{
        f"roi_head.mask_head.convs.{i}.conv": f"roi_heads.mask_head.mask_fcn{i + 1}"
        for i in range(4)
    },
    "roi_head.mask_head.upsample": "roi_heads.mask_head.deconv",
    "roi_head.mask_head.conv_logits": "roi_heads.mask_head.predictor",
}
ORIGINS = (
    Origin(
        "mask-rcnn",
        "the authors' Mask R-CNN",
        tuple(
            layout(
                table, "backbone.", "backbone.bottom_up.", MASK_RCNN, requires=(r"roi_head\..*",)
            )
            for table in VARIANTS
        ),
        part="model",
    ),
)
