"""A small ViT-CoMer Mask2Former that learns the panoptic segmentation of digits on a CPU, from scratch.

Ten digits are things, the page is stuff. The one model is measured as panoptic, semantic and instance
segmentation; mask2former_comer_digits_{semantic,instance}.py train for one of these alone. The
dataset and its pictures come from tools/quickstart.py.
"""

import os

from ..common.data.panoptic_custom import dataloader, dataset
from ..common.models.mask2former_comer import head_width, model
from ..common.optim import AdamW as optimizer
from ..common.train import train
from .mask_rcnn_comer_digits import lr_multiplier
from .mask_rcnn_comer_digits import model as _mask_rcnn

_datasets = os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets"))
_root = os.path.join(_datasets, "digits-panoptic")
dataset.name = "digits_panoptic"
for _split in ("train", "val"):
    dataset[f"{_split}_json"] = f"{_root}/panoptic_{_split}.json"
    dataset[f"{_split}_images"] = f"{_root}/{_split}"
    dataset[f"{_split}_masks"] = f"{_root}/panoptic_{_split}"
dataset.val_instances = f"{_root}/val.json"
dataset.hint = "make it with: python3 tools/quickstart.py --task panoptic --data-only"

# 128 px scenes as they are: a digit must be neither mirrored nor cut, so these keys would change nothing.
dataset.pop("image_size")
dataset.pop("augment")
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
    ffn_dim=128,
)
model.sem_seg_head.predictor.update(
    num_classes="${dataset.num_classes}", num_queries=16, num_heads=4, num_layers=3, ffn_dim=256
)
model.criterion.num_points = 512
# Without a pretrained ViT, masks are learnt long before classes; this brings the classes forward
# (docs/SEGMENTATION.md has what was measured). In the matching it is the published 2.
model.criterion.class_weight = 10.0
model.criterion.matcher.cost_class = 2.0
model.views = None
model.stuff_classes = "${dataset.stuff_classes}"
model.tasks = ["panoptic", "instance", "semantic"]
model.score_threshold = 0.4  # after minutes, not days, of training; so is the next
model.overlap_threshold = 0.6

optimizer.lr = 1e-3
optimizer.weight_decay = 0.05
train.clip_grad.max_norm = 0.1
train.best_checkpointer.metric = "panoptic_seg/PQ"

train.output_dir = "output/quickstart-seg/panoptic"
train.device = "cpu"
train.seed = 0
train.max_iter = 1600
train.eval_period = 800
train.checkpointer.period = 100
train.checkpointer.max_to_keep = 1
