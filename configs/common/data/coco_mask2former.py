"""COCO as Mask2Former trains: coco_lsj.py's flip, jitter and 1024 crop, batch 16; test at 800.

`dataloader` is for instances, `panoptic_dataloader` for things and stuff.
"""

import copy

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L
from detectron2.evaluation import COCOEvaluator

from comer_d2.d2.data.mappers import PanopticMapper
from comer_d2.d2.evaluation.panoptic import PanopticEvaluator
from comer_d2.d2.evaluation.semantic import SemanticEvaluator

from .coco_lsj import dataloader

dataloader.train.total_batch_size = 16
dataloader.train.aspect_ratio_grouping = False  # the crops are squares
dataloader.train.mapper.instance_mask_format = "bitmask"
dataloader.test.mapper.augmentations = [
    L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333),
]


def panoptic_data(dataloader):
    """Makes a loader of instances one of panoptic segments, measured in all three ways."""
    for split, is_train in (("train", True), ("test", False)):
        dataloader[split].mapper = L(PanopticMapper)(
            is_train=is_train,
            augmentations=dataloader[split].mapper.augmentations,
            image_format="RGB",
        )
    dataloader.evaluator = [
        L(PanopticEvaluator)(dataset_name="${...test.dataset.names}"),
        L(COCOEvaluator)(dataset_name="${...test.dataset.names}", tasks=("segm",)),
        L(SemanticEvaluator)(dataset_name="${...test.dataset.names}"),
    ]


panoptic_dataloader = copy.deepcopy(dataloader)
panoptic_data(panoptic_dataloader)
panoptic_dataloader.train.dataset.names = "coco_2017_train_panoptic"
panoptic_dataloader.test.dataset.names = "coco_2017_val_panoptic"
