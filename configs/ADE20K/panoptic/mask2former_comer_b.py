"""Panoptic ADE20K on ViT-CoMer-B: 640 crop; otherwise ../semantic/mask2former_comer_b.py."""

import detectron2.data.transforms as T
from detectron2.config import LazyCall as L

from comer_d2.d2.data.builtin import ADE20K_THINGS
from comer_d2.d2.data.mappers import PanopticMapper
from comer_d2.d2.evaluation.panoptic import PanopticEvaluator
from comer_d2.d2.evaluation.semantic import SemanticEvaluator

from ..semantic.mask2former_comer_b import dataloader, lr_multiplier, model, optimizer, train

for _split, _name in (("train", "train"), ("test", "val")):
    dataloader[_split].dataset.names = f"ade20k_panoptic_{_name}"
    dataloader[_split].mapper = L(PanopticMapper)(
        is_train=_split == "train",
        augmentations=dataloader[_split].mapper.augmentations,
        image_format="RGB",
    )
# Without the limit on a category's area, as Mask2Former: it needs a label map.
dataloader.train.mapper.augmentations[1] = L(T.RandomCrop)(
    crop_type="absolute", crop_size=(640, 640)
)
dataloader.evaluator = [
    L(PanopticEvaluator)(dataset_name="${...test.dataset.names}"),
    L(SemanticEvaluator)(dataset_name="${...test.dataset.names}"),
]

model.tasks = ["panoptic", "semantic"]
model.views = None
model.stuff_classes = [i for i in range(150) if i not in ADE20K_THINGS]
train.best_checkpointer.metric = "panoptic_seg/PQ"
