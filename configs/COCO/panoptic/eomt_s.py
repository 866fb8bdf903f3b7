"""EoMT-S, 24 epochs; see eomt_l.py. Published: 44.7 PQ."""

from ...common.models.eomt import eomt_size
from .eomt_l import dataloader, lr_multiplier, model, optimizer, train

eomt_size(model, "S")
train.max_iter = 177_432  # 24 epochs
