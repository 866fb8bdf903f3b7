"""The authors' recipe for size T. Published: 43.5 mIoU (single scale), 38.7 M parameters."""

from ...common.models.upernet_comer import upernet_size
from .upernet_comer_b import dataloader, lr_multiplier, model, optimizer, train

upernet_size(model, "T")
optimizer.lr = 12e-5
