"""Cascade R-CNN on the quickstart's digits: faster_rcnn_comer_digits.py with three box heads."""

from detectron2 import model_zoo
from detectron2.modeling.roi_heads import CascadeROIHeads

from comer_d2.d2.modeling.generalized_rcnn import BoxPredictor

from .faster_rcnn_comer_digits import dataloader, dataset, lr_multiplier, model, optimizer, train

_cascade = model_zoo.get_config("common/models/cascade_rcnn.py").model.roi_heads
_roi_heads = model.roi_heads
_box_head = _roi_heads.pop("box_head")
for _name in ("box_predictor", "proposal_matcher"):
    _roi_heads.pop(_name)
for _predictor in _cascade.box_predictors:
    _predictor._target_ = BoxPredictor
    _predictor.input_shape.channels = _box_head.fc_dims[-1]
_roi_heads.update(
    _target_=CascadeROIHeads,
    box_heads=[_box_head for _ in range(3)],
    box_predictors=_cascade.box_predictors,
    proposal_matchers=_cascade.proposal_matchers,
)
train.output_dir = "output/quickstart/cascade_rcnn"
