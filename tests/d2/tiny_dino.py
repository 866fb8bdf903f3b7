"""DINO on tiny_proposals.py's backbone and data, where nothing is left to chance; a config for tests."""

import torch

from ...configs.common.models.dino_comer import model
from .tiny_proposals import dataloader, lr_multiplier, optimizer, train  # noqa: F401
from .tiny_proposals import model as _proposals

model.backbone = _proposals.backbone.bottom_up
model.backbone.out_features = ["res3", "res4", "res5"]
model.head.update(dim=16, num_queries=10)
model.head.neck.update(in_channels=[16, 24, 32], norm_groups=4)
for _part in (model.head.encoder, model.head.decoder):
    _part.update(num_layers=2, num_heads=2, ffn_dim=16)
model.head.denoising.update(num_queries=8, rand=torch.zeros)
model.head.proposals.num_classes = 2
