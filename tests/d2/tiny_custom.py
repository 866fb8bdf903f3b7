"""The detector of `tiny_mask_rcnn.py` on COCO-format data that `dataset` names; a config for tests."""

from comer_d2.d2.data.mappers import InstanceMapper

from ...configs.common.data.coco_custom import dataset  # noqa: F401
from .tiny_mask_rcnn import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

for _split, _name in (("train", "train"), ("test", "val")):
    dataloader[_split].dataset.names = f"${{dataset.name}}_{_name}"
    dataloader[_split].mapper._target_ = InstanceMapper
dataloader.train.mapper.instance_mask_format = "bitmask"
dataloader.train.dataset.filter_empty = False  # backgrounds too
model.roi_heads.num_classes = "${dataset.num_classes}"
train.max_iter = 2
