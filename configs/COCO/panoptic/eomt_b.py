"""EoMT-B, 24 epochs; see eomt_l.py. Published: 50.6 PQ."""

from ...common.models.eomt import eomt_size
from .eomt_s import dataloader, lr_multiplier, model, optimizer, train

eomt_size(model, "B")
