"""COCO panoptic data of your own: paths given once under `dataset`, classes read from the json.

Augmented as coco_mask2former.py does; docs/SEGMENTATION.md has a worked example.
"""

from .coco_mask2former import panoptic_dataloader as dataloader

dataset = dict(
    format="panoptic",
    name="custom",  # registered as custom_train and custom_val
    train_json="",
    train_images="",
    train_masks="",  # folder of the PNGs
    val_json="",
    val_images="",
    val_masks="",
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

dataloader.train.on_bad_image = "${dataset.on_bad_image}"
dataloader.train.max_bad_images = "${dataset.max_bad_images}"
dataloader.train.dataset.names = "${dataset.name}_train"
dataloader.test.dataset.names = "${dataset.name}_val"
