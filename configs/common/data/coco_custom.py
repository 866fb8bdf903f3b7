"""COCO-format data of your own: paths given once under `dataset`, classes read from the json.

docs/DATASETS.md has a worked example.
"""

from comer_d2.d2.data.augmentation import objects

from .coco_detr import dataloader
from .own import follow_dataset

dataset = dict(
    name="custom",  # registered as custom_train and custom_val
    train_json="",
    train_images="",
    val_json="",
    val_images="",
    image_size=640,  # pixels, the longer side
    augment="standard",  # or "none", "flip", "strong"
    repair=False,  # whether annotations may be changed: docs/DATASETS.md
    on_bad_image="error",  # or "skip"
    max_bad_images=0.1,  # so many of all may be skipped
    # Read from the json by comer_d2.d2.data.custom.resolve_dataset: leave them out.
    num_classes=None,
    class_names=None,
    # Told with the error when a json is missing.
    hint="",
)

follow_dataset(dataloader, objects)
# Polygons and RLE both become bitmasks; "polygon" would refuse RLE.
dataloader.train.mapper.instance_mask_format = "bitmask"
