"""Size L, 36 epochs; see mask_rcnn_comer_l_1x.py."""

from ..common.schedule import lr_multiplier_3x as lr_multiplier
from .mask_rcnn_comer_l_1x import dataloader, model, optimizer, train

train.max_iter = lr_multiplier.scheduler.num_updates
