"""tiny_dino.py with Co-DINO's collaborative heads; a config for tests."""

from ...configs.common.models.codino_comer import model as _codino
from .tiny_dino import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

_strides = [8, 16, 32, 64, 128]
model.criterion.quality = True
model.collaborative = _codino.collaborative
_heads = model.collaborative
_heads.norm_groups = 4
_rpn = _heads.proposal_generator
_rpn.in_features = ["m0", "m1", "m2", "m3", "m4"]
_rpn.head.num_anchors = 3
_rpn.anchor_generator.update(sizes=[[16], [24], [32], [48], [64]], strides=_strides)
_rpn.pre_nms_topk = _rpn.post_nms_topk = (50, 50)
_roi_heads = _heads.roi_heads
_roi_heads.box_in_features = _rpn.in_features
_roi_heads.box_pooler.scales = [1 / stride for stride in _strides]
_roi_heads.box_head.fc_dims = [16]
_roi_heads.box_predictor.input_shape.channels = 16
_heads.atss.update(strides=_strides, num_groups=4)
_heads.roi_queries.most_queries = _heads.atss_queries.most_queries = 12
