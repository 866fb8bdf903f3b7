"""The plain ViT-S under DINO; see dino_comer_s_12ep.py."""

from ..common.models.dino_vit import model
from ..common.models.sizes import vit_size
from .dino_comer_s_12ep import dataloader, lr_multiplier, optimizer, train

vit_size(model.backbone.net, "S")
model.backbone.net.pretrain_img_size = 592
