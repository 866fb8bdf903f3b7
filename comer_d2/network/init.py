"""Initial weights of linear layers and convolutions."""

import math

from timm.layers import trunc_normal_
from torch import nn


def draw_layers(*parts: nn.Module) -> None:
    """Draws the linear layers and convolutions of modules as the released training did."""
    for part in parts:
        for module in part.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
            else:
                continue
            if module.bias is not None:
                nn.init.zeros_(module.bias)
