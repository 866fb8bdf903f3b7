"""36 epochs, a tenth of the rate after 30; see dino_comer_s_12ep.py."""

from ..common.schedule import iterations, steps
from .dino_comer_s_12ep import dataloader, model, optimizer, train

lr_multiplier = steps(iterations(36), [iterations(30)], warmup_iters=500)
train.max_iter = lr_multiplier.scheduler.num_updates
