"""Label maps of your own: folders and class names given once under `dataset`.

Augmented as ade20k_semantic.py does; docs/SEGMENTATION.md has a worked example.
"""

from .ade20k_semantic import dataloader

dataset = dict(
    format="semantic",
    name="custom",  # registered as custom_train and custom_val
    # Folders. The mask of <images>/a/b.jpg is <masks>/a/b.png: one channel, numbers of classes.
    train_images="",
    train_masks="",
    val_images="",
    val_masks="",
    # Names of labels 0, 1, ...: a list, or a file with one on each line.
    class_names=None,
    ignore_label=255,  # the label, in files, of pixels that neither train nor count
    on_bad_image="error",  # or "skip"
    max_bad_images=0.1,  # so many of all may be skipped
    num_classes=None,  # filled in
    # Told with the error when a folder is missing.
    hint="",
)

dataloader.train.on_bad_image = "${dataset.on_bad_image}"
dataloader.train.max_bad_images = "${dataset.max_bad_images}"
dataloader.train.dataset.names = "${dataset.name}_train"
dataloader.test.dataset.names = "${dataset.name}_val"
