"""EoMT-S for instances, 24 epochs as for panoptic segmentation; see ../panoptic/eomt_s.py. No figure is quoted."""

from ...common.models.eomt import eomt_size
from .eomt_l import dataloader, lr_multiplier, model, optimizer, train

eomt_size(model, "S")
train.max_iter = 177_432
