"""COCO panoptic data of your own: paths given once under `dataset`, classes read from the json.

docs/SEGMENTATION.md has a worked example.
"""

from comer_d2.d2.data.augmentation import objects

from .coco_mask2former import panoptic_dataloader as dataloader
from .own import follow_dataset

dataset = dict(
    format="panoptic",
    name="custom",  # registered as custom_train and custom_val
    train_json="",
    train_images="",
    train_masks="",  # folder of the PNGs
    val_json="",
    val_images="",
    val_masks="",
    image_size=640,  # pixels, the longer side
    augment="standard",  # or "none", "flip", "strong"
    # A COCO instances file of the validation images, to measure mask AP by; without it, leave the
    # COCOEvaluator out of dataloader.evaluator.
    val_instances="",
    on_bad_image="error",  # or "skip"
    max_bad_images=0.1,  # so many of all may be skipped
    # Filled in: classes are numbered things first, then stuff.
    num_classes=None,
    num_things=None,
    class_names=None,
    stuff_classes=None,
    # Told with the error when a json is missing.
    hint="",
)

follow_dataset(dataloader, objects)
