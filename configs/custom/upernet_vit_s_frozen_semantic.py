"""The baseline of upernet_comer_s_frozen_semantic.py: the same heads on the same ViT under a simple feature pyramid."""

from ..common.models.plain_vit import upernet_on_vit
from .upernet_comer_s_frozen_semantic import (
    dataloader,
    dataset,
    lr_multiplier,
    model,
    optimizer,
    train,
)

upernet_on_vit(model, out_channels=128)
