"""The plain ViT-B under DINO; see dino_comer_b_12ep.py."""

from ..common.models.sizes import vit_size
from .dino_comer_b_12ep import dataloader, lr_multiplier, optimizer, train
from .dino_vit_s_12ep import model

vit_size(model.backbone.net, "B")
