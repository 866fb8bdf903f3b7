"""Cascade Mask R-CNN with FPN on ViT-CoMer, size B, with the heads that ViTDet uses.

ViTDet's model with its backbone replaced and its box head made three, as in ViTDet's own cascade.
"""

from detectron2 import model_zoo
from detectron2.modeling.roi_heads import CascadeROIHeads

from comer_d2.d2.modeling.generalized_rcnn import BoxPredictor, GeneralizedRCNN

from .mask_rcnn_comer import model as _mask_rcnn

_cascade_roi_heads = model_zoo.get_config("common/models/cascade_rcnn.py").model.roi_heads
for _predictor in _cascade_roi_heads.box_predictors:
    _predictor._target_ = BoxPredictor

# ViTDet: a 2-conv RPN, a 4conv1fc box head, layer norm in the heads
model = model_zoo.get_config("common/models/mask_rcnn_vitdet.py").model
model._target_ = GeneralizedRCNN
model.backbone = _mask_rcnn.backbone
model.backbone.norm = "LN"  # as ViTDet's pyramid, and as its FPN on the Swin and MViT backbones
model.backbone.square_pad = 1024

_box_head = model.roi_heads.pop("box_head")
for _name in ("box_predictor", "proposal_matcher"):
    model.roi_heads.pop(_name)
model.roi_heads.update(
    _target_=CascadeROIHeads,
    box_heads=[_box_head for _ in range(3)],
    box_predictors=_cascade_roi_heads.box_predictors,
    proposal_matchers=_cascade_roi_heads.proposal_matchers,
)
