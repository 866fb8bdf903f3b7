"""The authors' recipe for size S, 36 epochs."""

from ..common.schedule import lr_multiplier_3x as lr_multiplier
from .mask_rcnn_comer_s_1x import dataloader, model, optimizer, train

train.max_iter = lr_multiplier.scheduler.num_updates
