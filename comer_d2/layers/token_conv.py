"""Depthwise convolutions of every level of a token pyramid."""

from collections.abc import Sequence

from torch import Tensor, nn

from comer_d2.ops import token_depthwise_conv

from .levels import Levels


class TokenDepthwiseConv(nn.Conv2d):
    """A depthwise convolution shared by all levels: a ``Conv2d`` that takes tokens.

    Args:
        channels: C of a token.
        kernel_size: odd side of the kernel.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def forward(  # type: ignore[override]  # a Conv2d by its parameters and their draws alone
        self, tokens: Tensor, levels: Levels
    ) -> Tensor:
        """Tokens (B, S, C) -> (B, S, C), with zeros around every level."""
        assert self.bias is not None
        return token_depthwise_conv(tokens, levels.spatial_shapes, self.weight, self.bias)


class DepthwiseKernel(nn.Conv2d):
    """Weight and bias of one level and channel group of :class:`LevelDepthwiseConv`.

    Its forward gives both, so that what works on layers (hooks, pruning, parametrizations) works on it.

    Args:
        channels: C of the group.
        kernel_size: odd side of the kernel.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)

    def forward(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """-> weight (C, 1, k, k) and bias (C,)."""
        assert self.bias is not None
        return self.weight, self.bias


class LevelDepthwiseConv(nn.ModuleList):
    """Depthwise convolutions of several sizes, other ones for each level, in one call.

    ``self[level][group]`` is the :class:`DepthwiseKernel` of an equal share of the channels.

    Args:
        channels: C of a token.
        kernel_sizes: odd sides of the kernels, one a group of channels.
        num_levels: of the pyramid.
    """

    def __init__(self, channels: int, kernel_sizes: Sequence[int], num_levels: int) -> None:
        share = channels // len(kernel_sizes)
        super().__init__(
            nn.ModuleList(DepthwiseKernel(share, size) for size in kernel_sizes)
            for _ in range(num_levels)
        )

    def forward(self, tokens: Tensor, levels: Levels) -> Tensor:
        """Tokens (B, S, C) -> (B, S, C), with zeros around every level."""
        kernels = [[kernel() for kernel in level.children()] for level in self]
        return token_depthwise_conv(
            tokens,
            levels.spatial_shapes,
            [[weight for weight, _ in level] for level in kernels],
            [[bias for _, bias in level] for level in kernels],
        )
