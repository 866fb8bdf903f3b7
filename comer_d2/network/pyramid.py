"""Image -> CNN stem -> the four levels of the CNN branch."""

from collections.abc import Callable

from torch import Tensor, nn


class SpatialPyramid(nn.Module):
    """The convolutional branch: strides 4, 8, 16 and 32 of the image, all with ``embed_dim`` channels.

    Source: "CNN" in Figure 3 and Sec. 3.1 of arXiv 2403.07392.

    Args:
        in_chans: channels of the image.
        stem_width: channels P at stride 4; the others have 2P, 4P and 4P before their projection.
        embed_dim: channels D of every output.
        norm_layer: channels -> normalisation module.
    """

    def __init__(
        self,
        in_chans: int,
        stem_width: int,
        embed_dim: int,
        norm_layer: Callable[[int], nn.Module],
    ) -> None:
        super().__init__()

        def conv(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False),
                norm_layer(out_channels),
                nn.ReLU(inplace=True),
            )

        widths = [stem_width, 2 * stem_width, 4 * stem_width, 4 * stem_width]
        self.stem = nn.Sequential(
            conv(in_chans, stem_width, stride=2),
            conv(stem_width, stem_width, stride=1),
            conv(stem_width, stem_width, stride=1),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        self.downsample = nn.ModuleList(
            conv(widths[i], widths[i + 1], stride=2) for i in range(len(widths) - 1)
        )
        self.projections = nn.ModuleList(nn.Conv2d(width, embed_dim, 1) for width in widths)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Image (B, C, h, w) -> maps (B, D, h/s, w/s) for s = 4, 8, 16, 32."""
        x = self.stem(image)
        maps = [self.projections[0](x)]
        for downsample, proj in zip(self.downsample, self.projections[1:], strict=True):
            x = downsample(x)
            maps.append(proj(x))
        return maps
