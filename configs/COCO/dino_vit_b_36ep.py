"""The plain ViT-B under DINO; see dino_comer_b_36ep.py."""

from .dino_comer_b_36ep import dataloader, lr_multiplier, optimizer, train
from .dino_vit_b_12ep import model
