"""The plain ViT baseline of mask_rcnn_comer_b_3x.py: only the backbone differs."""

from .mask_rcnn_comer_b_3x import dataloader, lr_multiplier, optimizer, train
from .mask_rcnn_vit_b_1x import model
