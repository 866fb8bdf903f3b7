"""ViT-CoMer-T Mask R-CNN with narrow heads at 320 pixels, for a CPU or a first try; see mask_rcnn_comer_s.py."""

from ..common.models.sizes import comer_size
from .mask_rcnn_comer_s import dataloader, dataset, lr_multiplier, model, optimizer, train

comer_size(model.backbone.bottom_up, "T")
dataset.image_size = 320

CHANNELS = 128
model.backbone.out_channels = CHANNELS
_rpn = model.proposal_generator
_rpn.head.in_channels = CHANNELS
_rpn.anchor_generator.sizes = [[16], [32], [64], [128], [256]]  # half of those for 800 pixels
_rpn.batch_size_per_image = 128
_rpn.pre_nms_topk = _rpn.post_nms_topk = (500, 250)
_roi_heads = model.roi_heads
_roi_heads.batch_size_per_image = 64
_roi_heads.box_head.input_shape.channels = CHANNELS
_roi_heads.box_head.fc_dims = [256, 256]
_roi_heads.box_predictor.input_shape.channels = 256
_roi_heads.mask_head.input_shape.channels = CHANNELS
_roi_heads.mask_head.conv_dims = [CHANNELS, CHANNELS]
