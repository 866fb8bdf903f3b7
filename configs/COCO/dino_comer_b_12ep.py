"""Size B; see dino_comer_s_12ep.py."""

from ..common.models.dino_comer import dino_size
from .dino_comer_s_12ep import dataloader, lr_multiplier, model, optimizer, train

dino_size(model, "B")
optimizer.params.lr_decay_rate = 0.60
