"""Label maps of your own: folders and class names given once under `dataset`.

docs/SEGMENTATION.md has a worked example.
"""

from comer_d2.d2.data.augmentation import label_maps

from .ade20k_semantic import dataloader
from .own import follow_dataset

dataset = dict(
    format="semantic",
    name="custom",  # registered as custom_train and custom_val
    # Folders. The mask of <images>/a/b.jpg is <masks>/a/b.png: one channel, numbers of classes.
    train_images="",
    train_masks="",
    val_images="",
    val_masks="",
    image_size=512,  # pixels, the shorter side; crops of it are trained on
    augment="standard",  # or "none", "flip", "strong"
    # Names of labels 0, 1, ...: a list, or a file with one on each line.
    class_names=None,
    ignore_label=255,  # the label, in files, of pixels that neither train nor count
    on_bad_image="error",  # or "skip"
    max_bad_images=0.1,  # so many of all may be skipped
    num_classes=None,  # filled in
    # Told with the error when a folder is missing.
    hint="",
)

follow_dataset(dataloader, label_maps)
