"""Size B, with a crop of 640 as Mask2Former's Swin-B; see mask2former_comer_s.py."""

from ...common.data.ade20k_semantic import semantic_crop
from ...common.models.mask2former_comer import mask2former_size
from .mask2former_comer_s import dataloader, lr_multiplier, model, optimizer, train

semantic_crop(dataloader, 640)
mask2former_size(model, "B")
optimizer.params.lr_decay_rate = 0.60
