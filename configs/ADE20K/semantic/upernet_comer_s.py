"""The authors' recipe for size S. Published: 46.5 mIoU (single scale), 61.4 M parameters."""

from ...common.models.upernet_comer import upernet_size
from .upernet_comer_b import dataloader, lr_multiplier, model, optimizer, train

upernet_size(model, "S")
