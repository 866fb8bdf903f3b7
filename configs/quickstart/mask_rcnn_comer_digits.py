"""A small ViT-CoMer Mask R-CNN that learns scanned digits on a CPU, from scratch, in minutes.

tools/quickstart.py makes the dataset, trains, and draws the result.
"""

import os

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import (
    CompositeParamScheduler,
    ConstantParamScheduler,
    CosineParamScheduler,
)

from ..common.data.coco_custom import dataloader, dataset
from ..common.models.mask_rcnn_comer import model
from ..common.optim import AdamW as optimizer
from ..common.train import train

_root = os.path.expanduser(os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), "digits"))
dataset.name = "digits"
dataset.train_json, dataset.train_images = f"{_root}/train.json", f"{_root}/train"
dataset.val_json, dataset.val_images = f"{_root}/val.json", f"{_root}/val"
dataset.hint = "make it with: python3 tools/quickstart.py --data-only"

# 128 px scenes as they are: a digit must be neither mirrored nor cut, so these keys would change nothing.
dataset.pop("image_size")
dataset.pop("augment")
dataloader.train.mapper.augmentations = []
dataloader.test.mapper.augmentations = []
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 1
dataloader.test.num_workers = 0

CHANNELS = 64
model.backbone.bottom_up.vit.update(
    embed_dim=64,
    depth=4,
    num_heads=2,
    drop_path_rate=0.0,
    window_size=0,  # 8x8 tokens: every block sees them all
    window_block_indexes=[],
    pretrain_img_size=128,
)
model.backbone.bottom_up.update(
    stem_width=16,
    interaction_indexes=[[0, 1], [2, 3]],
    deform_num_heads=4,
    deform_ratio=1.0,
    num_extra_cti=1,
)
model.backbone.out_channels = CHANNELS

# Heads for scenes of 1 to 4 digits of 28 to 52 px: fewer proposals, narrower layers.
_rpn = model.proposal_generator
_rpn.head.in_channels = CHANNELS
_rpn.anchor_generator.sizes = [[12], [20], [32], [52], [96]]
_rpn.batch_size_per_image = 64
_rpn.pre_nms_topk = (200, 200)
_rpn.post_nms_topk = (200, 60)
_roi_heads = model.roi_heads
_roi_heads.num_classes = "${dataset.num_classes}"
# Half of 16 are digits, where it was a quarter of 32: as many to learn from, half to compute.
_roi_heads.batch_size_per_image = 16
_roi_heads.positive_fraction = 0.5
_roi_heads.box_head.input_shape.channels = CHANNELS
_roi_heads.box_head.fc_dims = [128, 128]
_roi_heads.box_predictor.input_shape.channels = 128
_roi_heads.mask_head.input_shape.channels = CHANNELS
_roi_heads.mask_head.conv_dims = [CHANNELS, CHANNELS]

optimizer.lr = 1e-3
optimizer.weight_decay = 0.05
train.clip_grad.max_norm = 1.0

train.output_dir = "output/quickstart/comer"
train.device = "cpu"
train.seed = 0
train.max_iter = 1000
train.eval_period = 500
train.checkpointer.period = 100
train.checkpointer.max_to_keep = 1
# Constant for 70 %, then down to 0: so short a run has no time for a long decay.
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CompositeParamScheduler)(
        schedulers=[
            L(ConstantParamScheduler)(value=1.0),
            L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
        ],
        lengths=[0.7, 0.3],
        interval_scaling=["rescaled", "rescaled"],
    ),
    warmup_length=0.05,
    warmup_factor=0.01,
)
