"""Heads in plain PyTorch: Mask2Former and UPerNet for segmentation, ATSS and GFL for boxes."""

from .atss import ATSSHead
from .criterion import SetCriterion
from .gfl import GFLHead
from .mask2former import Mask2FormerHead
from .upernet import UPerNetHead

__all__ = ["ATSSHead", "GFLHead", "Mask2FormerHead", "SetCriterion", "UPerNetHead"]
