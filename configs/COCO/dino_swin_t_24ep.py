"""DINO on Swin-T of timm, a baseline; see dino_swin_t_12ep.py and dino_comer_s_24ep.py."""

from .dino_comer_s_24ep import dataloader, lr_multiplier, train
from .dino_swin_t_12ep import model, optimizer
