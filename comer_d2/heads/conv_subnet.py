"""The convolutions of a dense detector's head."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ConvGNReLU(nn.Sequential):
    """3x3 convolution without bias, group normalization, ReLU.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        num_groups: of the normalization.
    """

    def __init__(self, in_channels: int, out_channels: int, num_groups: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(num_groups, out_channels)
        self.relu = nn.ReLU(inplace=True)
        nn.init.normal_(self.conv.weight, std=0.01)


def conv_subnet(in_channels: int, channels: int, num_convs: int, num_groups: int) -> nn.Sequential:
    """The subnet that all levels share: (B, in_channels, H, W) -> (B, channels, H, W)."""
    return nn.Sequential(
        *(
            ConvGNReLU(in_channels if i == 0 else channels, channels, num_groups)
            for i in range(num_convs)
        )
    )


def predictor(channels: int, outputs: int, bias: float = 0.0) -> nn.Conv2d:
    """The last convolution: N(0, 0.01) weights, so that predictions start at the bias."""
    conv = nn.Conv2d(channels, outputs, 3, padding=1)
    nn.init.normal_(conv.weight, std=0.01)
    assert conv.bias is not None
    nn.init.constant_(conv.bias, bias)
    return conv


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Maps of every level, (B, C, H, W) -> (B, A, C) float32, A the cells of all levels."""
    return torch.cat([level.flatten(2).transpose(1, 2) for level in maps], dim=1).float()
