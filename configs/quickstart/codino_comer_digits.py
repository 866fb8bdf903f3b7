"""The quickstart's digits by a small Co-DINO: dino_comer_digits.py with the two collaborative heads."""

from ..common.models.codino_comer import model as _codino
from .dino_comer_digits import dataloader, dataset, lr_multiplier, model, optimizer, train

# Strides 8, 16 and 32, and 64 for the collaborative heads. Digits are 28 to 52 px.
_strides = [8, 16, 32, 64]
model.criterion.quality = True
model.collaborative = _codino.collaborative
_heads = model.collaborative
_heads.norm_groups = 8
_rpn = _heads.proposal_generator
_rpn.in_features = ["m0", "m1", "m2", "m3"]
_rpn.head.num_anchors = 3
_rpn.anchor_generator.update(sizes=[[20], [32], [52], [96]], strides=_strides)
_rpn.batch_size_per_image = 64
_rpn.pre_nms_topk = _rpn.post_nms_topk = (100, 100)
_roi_heads = _heads.roi_heads
_roi_heads.box_in_features = _rpn.in_features
_roi_heads.box_pooler.scales = [1 / stride for stride in _strides]
_roi_heads.batch_size_per_image = 16
_roi_heads.positive_fraction = 0.5
_roi_heads.box_head.fc_dims = [128, 128]
_roi_heads.box_predictor.input_shape.channels = 128
_heads.atss.update(strides=_strides, num_groups=8, anchor_scale=4.0)
_heads.roi_queries.most_queries = _heads.atss_queries.most_queries = 24
_heads.weight = 6.0  # 2, for each of the 3 decoder layers

train.output_dir = "output/quickstart/codino"
