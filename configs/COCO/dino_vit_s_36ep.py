"""The plain ViT-S under DINO; see dino_comer_s_36ep.py."""

from .dino_comer_s_36ep import dataloader, lr_multiplier, optimizer, train
from .dino_vit_s_12ep import model
