"""EoMT-S on ADE20K at 512, eomt_l.py's recipe. No figure is quoted."""

from ...common.models.eomt import eomt_size
from .eomt_l import dataloader, lr_multiplier, model, optimizer, train

eomt_size(model, "S")
