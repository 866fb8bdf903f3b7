"""Faster R-CNN on ViT-CoMer, size B: mask_rcnn_comer.py without masks."""

from .mask_rcnn_comer import model


def remove_masks(model):
    """Makes a Faster R-CNN of a Mask R-CNN, or of each with a cascade."""
    for name in ("mask_in_features", "mask_pooler", "mask_head"):
        model.roi_heads.pop(name)


remove_masks(model)
