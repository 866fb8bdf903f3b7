"""The network, in reading order: levels, pyramid, vit, deform_attn, interaction, vit_comer."""

from .vit_comer import ViTCoMerNet

__all__ = ["ViTCoMerNet"]
