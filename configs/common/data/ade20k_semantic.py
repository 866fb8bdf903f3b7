"""ADE20K, 150 classes: short edge 0.5 to 2 times 512, a 512 crop, colour changes, flip; batch 16.

Another crop is one edit: `semantic_crop(dataloader, 640)`.
"""

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from comer_d2.d2.data.color import RandomColor
from comer_d2.d2.data.loader import build_train_loader
from comer_d2.d2.data.mappers import SemanticMapper
from comer_d2.d2.evaluation.semantic import SemanticEvaluator

LONGEST = 4  # times the short edge; images of any common shape are far below


def semantic_crop(dataloader, side):
    """Trains on crops of `side` from images with short edges around it, and tests at it."""
    dataloader.train.mapper.augmentations = [
        L(T.ResizeShortestEdge)(
            short_edge_length=(side // 2, side * 2), sample_style="range", max_size=8 * side
        ),
        # No class may fill more than 3/4 of a crop, in ten attempts.
        L(T.RandomCrop_CategoryAreaConstraint)(
            crop_type="absolute",  # at most: it never pads, the model does
            crop_size=(side, side),
            single_category_max_area=0.75,
            ignored_category=255,
        ),
        L(RandomColor)(),
        L(T.RandomFlip)(horizontal=True),
    ]
    dataloader.test.mapper.augmentations = [
        L(T.ResizeShortestEdge)(short_edge_length=side, max_size=LONGEST * side),
    ]


dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.update(
    _target_=build_train_loader,  # a resumed run sees the batches it would have seen
    on_bad_image="error",  # "skip": up to max_bad_images, a share of all
    max_bad_images=0.1,
    mapper=L(SemanticMapper)(
        is_train=True, dataset_name="${..dataset.names}", augmentations=[], image_format="RGB"
    ),
    total_batch_size=16,
    aspect_ratio_grouping=False,  # crops are squares
)
dataloader.train.dataset.names = "ade20k_sem_seg_train"
dataloader.test.mapper = L(SemanticMapper)(
    is_train=False, dataset_name="${..dataset.names}", augmentations=[], image_format="RGB"
)
dataloader.test.dataset.names = "ade20k_sem_seg_val"
dataloader.evaluator = L(SemanticEvaluator)(dataset_name="${..test.dataset.names}")
semantic_crop(dataloader, 512)
