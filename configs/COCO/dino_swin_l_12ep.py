"""DINO with five scales on timm's Swin-L, 12 epochs; see dino_swin_l_36ep.py and dino_comer_s_12ep.py."""

from .dino_comer_s_12ep import dataloader, lr_multiplier, train
from .dino_swin_l_36ep import model, optimizer
