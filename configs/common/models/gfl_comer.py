"""GFL on ViT-CoMer, size B: atss_comer.py with another head."""

from detectron2.config import LazyCall as L

from comer_d2.heads.gfl import GFLHead

from .atss_comer import model

model.head = L(GFLHead)(num_classes=80, in_channels="${..backbone.out_channels}")
