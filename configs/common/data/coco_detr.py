"""COCO as ViT-CoMer's authors train: flip, DETR's multi-scale resize and crop, a 1024 crop.

Batch 16; test at 800, longer side at most 1333.
"""

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from comer_d2.d2.data.loader import build_train_loader
from comer_d2.d2.data.mappers import InstanceMapper

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train._target_ = build_train_loader  # Detectron2's, and a resumed run goes on exactly
dataloader.train.on_bad_image = "error"  # "skip": up to max_bad_images, a share of all
dataloader.train.max_bad_images = 0.1
for _split in ("train", "test"):
    dataloader[_split].mapper._target_ = InstanceMapper  # Detectron2's, also for empty images
dataloader.train.mapper.augmentations = [
    L(T.RandomFlip)(horizontal=True),
    # Half of the images are cropped first. (DETR chooses between two lists that end in the same
    # resize.)
    L(T.RandomApply)(
        tfm_or_aug=L(T.AugmentationList)(
            augs=[
                L(T.ResizeShortestEdge)(
                    short_edge_length=(400, 500, 600), sample_style="choice", max_size=1333
                ),
                L(T.RandomCrop)(crop_type="absolute_range", crop_size=(384, 600)),
            ]
        ),
        prob=0.5,
    ),
    L(T.ResizeShortestEdge)(
        short_edge_length=(480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        sample_style="choice",
        max_size=1333,
    ),
    L(T.RandomCrop)(crop_type="absolute", crop_size=(1024, 1024)),  # at most: it never pads
]
dataloader.train.mapper.image_format = "RGB"
