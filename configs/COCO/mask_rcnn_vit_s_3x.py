"""The plain ViT baseline of mask_rcnn_comer_s_3x.py: only the backbone differs."""

from .mask_rcnn_comer_s_3x import dataloader, lr_multiplier, optimizer, train
from .mask_rcnn_vit_s_1x import model
