"""The network, in reading order: pyramid, trunk, vit, interaction, vit_comer."""

from .vit import ViT
from .vit_comer import ViTCoMerNet

__all__ = ["ViT", "ViTCoMerNet"]
