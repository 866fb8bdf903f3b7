"""Size T, 36 epochs; see mask_rcnn_comer_t_1x.py."""

from ..common.schedule import lr_multiplier_3x as lr_multiplier
from .mask_rcnn_comer_t_1x import dataloader, model, optimizer, train

train.max_iter = lr_multiplier.scheduler.num_updates
