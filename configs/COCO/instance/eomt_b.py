"""EoMT-B for instances, 24 epochs; see eomt_s.py. No figure is quoted."""

from ...common.models.eomt import eomt_size
from .eomt_s import dataloader, lr_multiplier, model, optimizer, train

eomt_size(model, "B")
