"""Loaders of your own data, which go by the keys of `dataset`."""

from detectron2.config import LazyCall as L


def follow_dataset(dataloader, augmentations):
    """Makes loaders read what `dataset` names, in its size; `augmentations` takes image_size and augment."""
    for split, augment in (("train", "${dataset.augment}"), ("test", "none")):
        dataloader[split].mapper.augmentations = L(augmentations)(
            image_size="${dataset.image_size}", augment=augment
        )
    dataloader.train.on_bad_image = "${dataset.on_bad_image}"
    dataloader.train.max_bad_images = "${dataset.max_bad_images}"
    dataloader.train.dataset.names = "${dataset.name}_train"
    dataloader.test.dataset.names = "${dataset.name}_val"
