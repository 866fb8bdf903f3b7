"""UPerNet on a tiny ViT-CoMer and label maps in folders; a config for tests."""

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from ...configs.common.data.semantic_custom import dataloader, dataset
from ...configs.common.models.upernet_comer import model
from ...configs.common.optim import AdamW as optimizer
from ...configs.common.train import train

dataloader.train.mapper.augmentations = [L(T.RandomFlip)(horizontal=True)]
dataloader.test.mapper.augmentations = []
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = dataloader.test.num_workers = 0
dataset.class_names = ["page", "square", "never"]

model.backbone.vit.update(
    embed_dim=32, depth=4, num_heads=2, drop_path_rate=0.0, pretrain_img_size=64
)
model.backbone.update(
    stem_width=8,
    interaction_indexes=[[i, i] for i in range(4)],
    deform_num_heads=2,
    deform_ratio=1.0,
    num_extra_cti=0,
)
model.sem_seg_head.update(in_channels=[32] * 4, channels=16, auxiliary_channels=8, dropout=0.0)
model.sem_seg_head.num_classes = "${dataset.num_classes}"
model.views.window = model.views.stride = (64, 64)

optimizer.lr = 3e-3
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x
train.report = False
train.max_iter = 6
train.seed = 1
train.device = "cpu"
train.log_period = 1
train.eval_period = 0
train.best_checkpointer.metric = "sem_seg/mIoU"
