"""GFL on ViT-CoMer-S, 36 epochs: as atss_comer_s_3x.py, but for the drop path, as ViT-Adapter-S's."""

from ..common.models.gfl_comer import model
from ..common.models.sizes import comer_size
from .atss_comer_s_3x import dataloader, lr_multiplier, optimizer, train

comer_size(model.backbone.bottom_up, "S")
