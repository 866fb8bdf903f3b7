"""Size B; see mask2former_comer_s.py."""

from ...common.models.mask2former_comer import detection_size
from .mask2former_comer_s import dataloader, lr_multiplier, model, optimizer, train

detection_size(model, "B")
optimizer.params.lr_decay_rate = 0.60
