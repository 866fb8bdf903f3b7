"""A Mask R-CNN that trains in seconds on the images of `tiny_coco.py`; a config for tests.

The folder with the images is in the environment variable TINY_COCO, so that this file is what a
user's config is: read by path, in every process anew.
"""

import os

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import register_coco_instances
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet

from comer_d2.d2.data.loader import build_train_loader

from ...configs.common.train import train

_root = os.environ["TINY_COCO"]
for _catalog in (DatasetCatalog, MetadataCatalog):
    if "tiny_coco" in _catalog.list():  # of a test before, in another folder
        _catalog.remove("tiny_coco")
register_coco_instances("tiny_coco", {}, os.path.join(_root, "instances.json"), _root)

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train._target_ = build_train_loader
dataloader.train.dataset.names = "tiny_coco"
dataloader.train.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=(48, 64), sample_style="choice", max_size=96),
    L(T.RandomFlip)(horizontal=True),
]
dataloader.train.total_batch_size = 2
dataloader.train.num_workers = 0
dataloader.test.dataset.names = "tiny_coco"
dataloader.test.mapper.augmentations = [L(T.ResizeShortestEdge)(short_edge_length=64, max_size=96)]
dataloader.test.num_workers = 0

model = model_zoo.get_config("common/models/mask_rcnn_fpn.py").model
model.backbone.bottom_up = L(ResNet)(
    stem=L(model.backbone.bottom_up.stem._target_)(in_channels=3, out_channels=8, norm="BN"),
    stages=[
        L(ResNet.make_stage)(
            block_class=BasicBlock,
            num_blocks=1,
            stride_per_block=[stride],
            in_channels=inner,
            out_channels=outer,
            norm="BN",
        )
        for stride, inner, outer in ((1, 8, 8), (2, 8, 16), (2, 16, 24), (2, 24, 32))
    ],
    out_features=["res2", "res3", "res4", "res5"],
)
model.backbone.out_channels = 16
model.proposal_generator.head.in_channels = 16
model.proposal_generator.anchor_generator.sizes = [[8], [16], [32], [48], [64]]
model.proposal_generator.batch_size_per_image = 32
model.proposal_generator.pre_nms_topk = (100, 50)
model.proposal_generator.post_nms_topk = (50, 20)
model.roi_heads.num_classes = 2
model.roi_heads.batch_size_per_image = 16
model.roi_heads.box_predictor.test_score_thresh = 0.0
model.roi_heads.box_head.input_shape.channels = 16
model.roi_heads.box_head.fc_dims = [32]
model.roi_heads.box_predictor.input_shape.channels = 32
model.roi_heads.mask_head.input_shape.channels = 16
model.roi_heads.mask_head.conv_dims = [16, 16]

optimizer = model_zoo.get_config("common/optim.py").AdamW
optimizer.lr = 1e-3
optimizer.params.overrides = {}
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x

train.max_iter = 8
train.report = False  # a page each would take longer than the runs
train.seed = 1
train.device = "cpu"
train.log_period = 1
train.eval_period = 0
train.checkpointer.period = 4
