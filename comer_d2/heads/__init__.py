"""Segmentation heads, in plain PyTorch: Mask2Former and UPerNet."""

from .criterion import SetCriterion
from .mask2former import Mask2FormerHead
from .upernet import UPerNetHead

__all__ = ["Mask2FormerHead", "SetCriterion", "UPerNetHead"]
