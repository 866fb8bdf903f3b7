"""The authors' recipe for size B. Published: 48.8 mIoU (single scale), 144.7 M parameters.

The paper starts from DeiT-B.
"""

from ...common.data.ade20k_semantic import dataloader
from ...common.models.upernet_comer import model
from ...common.optim import AdamW as optimizer
from ...common.schedule import poly
from ...common.train import train

optimizer.lr = 6e-5  # for a batch of 16
optimizer.weight_decay = 0.01
optimizer.params.lr_decay_rate = 0.95

train.max_iter = 160_000
lr_multiplier = poly(power=1.0, warmup_iters=1500)
train.amp.enabled = True
train.amp.dtype = "float16"
train.best_checkpointer.metric = "sem_seg/mIoU"
train.init_checkpoint = ""  # from scratch
