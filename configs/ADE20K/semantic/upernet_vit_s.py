"""The plain ViT-S under UPerNet, the recipe of upernet_comer_s.py."""

from ...common.models.sizes import vit_size
from ...common.models.upernet_vit import model
from .upernet_comer_s import dataloader, lr_multiplier, optimizer, train

vit_size(model.backbone.net, "S")
model.backbone.net.update(window_size=0, window_block_indexes=[])  # global attention, as there
