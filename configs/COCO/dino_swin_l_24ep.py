"""DINO with five scales on timm's Swin-L, 24 epochs; see dino_swin_l_36ep.py and dino_comer_s_24ep.py."""

from .dino_comer_s_24ep import dataloader, lr_multiplier, train
from .dino_swin_l_36ep import model, optimizer
