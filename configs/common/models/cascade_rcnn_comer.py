"""Cascade R-CNN on ViT-CoMer, size B: cascade_mask_rcnn_comer.py without masks."""

from .cascade_mask_rcnn_comer import model
from .faster_rcnn_comer import remove_masks

remove_masks(model)
