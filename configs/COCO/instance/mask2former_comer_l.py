"""Size L, 200 queries and 100 epochs as Mask2Former's Swin-L; see mask2former_comer_s.py."""

from ...common.models.mask2former_comer import detection_size
from ...common.schedule import steps
from .mask2former_comer_s import dataloader, model, optimizer, train

detection_size(model, "L")
model.sem_seg_head.predictor.num_queries = 200
optimizer.params.lr_decay_rate = 0.80

train.max_iter = 737_500
lr_multiplier = steps(train.max_iter, [655_556, 710_184], warmup_iters=10)
