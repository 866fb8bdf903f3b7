"""COCO as ViTDet trains: flip, scale jitter of 0.1 to 2.0, a 1024 crop, batch 64; test at 1024.

Another size is one edit: `jitter_crop(dataloader, 640)`.
"""

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from comer_d2.d2.data.loader import build_train_loader
from comer_d2.d2.data.mappers import InstanceMapper


def jitter_crop(dataloader, side):
    """Trains on crops of `side` pixels, from images that are scaled around it, and tests at it."""
    dataloader.train.mapper.augmentations = [
        L(T.RandomFlip)(horizontal=True),
        L(T.ResizeScale)(min_scale=0.1, max_scale=2.0, target_height=side, target_width=side),
        # No padding here: the model pads to its square_pad, and then with the mean colour.
        L(T.FixedSizeCrop)(crop_size=(side, side), pad=False),
    ]
    dataloader.test.mapper.augmentations = [
        L(T.ResizeShortestEdge)(short_edge_length=side, max_size=side),
    ]


dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train._target_ = build_train_loader  # Detectron2's, and a resumed run goes on exactly
dataloader.train.on_bad_image = "error"  # "skip": up to max_bad_images, a share of all
dataloader.train.max_bad_images = 0.1
for _split in ("train", "test"):
    dataloader[_split].mapper._target_ = InstanceMapper  # Detectron2's, also for empty images
dataloader.train.mapper.recompute_boxes = True  # from the cropped masks
dataloader.train.mapper.image_format = "RGB"
dataloader.train.total_batch_size = 64
jitter_crop(dataloader, 1024)
