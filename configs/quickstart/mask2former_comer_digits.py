"""A small ViT-CoMer Mask2Former that learns the panoptic segmentation of digits on a CPU, from scratch.

Digits, whichever they are, are things of one class, and the page is stuff: queries that get two or
three objects an image learn to find objects in minutes, but not, in that time, to tell ten classes
apart. The one model is measured as panoptic, semantic and instance segmentation. mask2former_comer_digits_{semantic,instance}.py train for one of these alone.
The dataset and its pictures come from tools/quickstart_seg.py.
"""

import os

from detectron2.config import LazyCall as L
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler

from ..common.data.panoptic_custom import dataloader, dataset
from ..common.models.mask2former_comer import head_width, model
from ..common.optim import AdamW as optimizer
from ..common.train import train
from .mask_rcnn_comer_digits import model as _mask_rcnn

_root = os.path.expanduser(os.path.join(os.getenv("DETECTRON2_DATASETS", "datasets"), "digits"))
dataset.name = "digits_panoptic"
for _split in ("train", "val"):
    dataset[f"{_split}_json"] = f"{_root}/panoptic_{_split}.json"
    dataset[f"{_split}_images"] = f"{_root}/{_split}"
    dataset[f"{_split}_masks"] = f"{_root}/panoptic_{_split}"
dataset.val_instances = f"{_root}/panoptic_val_instances.json"
dataset.hint = "make it with: python3 tools/quickstart_seg.py --data-only"

# 128 px scenes as they are: a digit must be neither mirrored nor cut.
dataloader.train.mapper.augmentations = []
dataloader.test.mapper.augmentations = []
dataloader.train.total_batch_size = 8
dataloader.train.num_workers = 1
dataloader.test.num_workers = 0

model.backbone = _mask_rcnn.backbone.bottom_up  # the backbone of the first quickstart
# Strokes are thin: queries look at strides 4, 8 and 16, not 8, 16 and 32.
_features = ["res2", "res3", "res4"]
model.backbone.out_features = _features
head_width(model, 64)
model.sem_seg_head.pixel_decoder.update(
    in_features=_features,
    transformer_in_features=_features,
    in_channels=[64] * 3,
    num_heads=4,
    num_layers=2,
)
model.sem_seg_head.predictor.update(
    num_classes="${dataset.num_classes}", num_queries=20, num_heads=4, num_layers=3, ffn_dim=256
)
model.criterion.num_points = 1024
model.views = None
model.stuff_classes = "${dataset.stuff_classes}"
model.tasks = ["panoptic", "instance", "semantic"]
model.score_threshold = 0.5  # after minutes, not days, of training

optimizer.lr = 1e-3
optimizer.weight_decay = 0.05
train.clip_grad.max_norm = 0.1
train.best_checkpointer.metric = "panoptic_seg/PQ"

train.output_dir = "output/quickstart-seg/panoptic"
train.device = "cpu"
train.seed = 0
train.max_iter = 700
train.eval_period = 350
train.checkpointer.period = 100
train.checkpointer.max_to_keep = 1
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_length=0.05,
    warmup_factor=0.01,
)
