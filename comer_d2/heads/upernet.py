"""UPerNet with an auxiliary FCN head: the paper's first segmentation framework."""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Callable[[int], nn.Module]


class ConvNormReLU(nn.Sequential):
    """Convolution without bias, normalisation, ReLU; keeps the size.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: odd side of the kernel.
        norm_layer: channels -> normalisation.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, norm_layer: Norm
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.norm = norm_layer(out_channels)
        self.relu = nn.ReLU(inplace=True)


def _pool(x: Tensor, grid: int, branch: nn.Module) -> Tensor:
    """(B, C, H, W) -> (B, C', H, W), a branch on means over a grid."""
    return _resize(branch(F.adaptive_avg_pool2d(x, grid)), x)


def _pool_symbolic(x: Tensor, grid: int, branch: nn.Module) -> Tensor:
    """The same where H and W may be symbols, which nothing here compares with the grid."""
    means = branch(grid_means(x, grid))
    return F.interpolate(means, size=x.shape[-2:], mode="bilinear", align_corners=False)


def grid_means(x: Tensor, grid: int) -> Tensor:
    """`torch.nn.functional.adaptive_avg_pool2d` as two products of matrices.

    Args:
        x: (B, C, H, W).
        grid: cells along each side.

    Returns:
        (B, C, grid, grid): cell i has the mean of rows floor(i H / grid) to ceil((i + 1) H / grid), and
        of such columns.
    """
    down, across = (_cells(n, grid, x) for n in x.shape[-2:])
    return down @ x @ across.T


def _cells(length: int, grid: int, x: Tensor) -> Tensor:
    """(grid, length), the share of every place in the mean of every cell."""
    place = torch.arange(length, device=x.device)
    cell = torch.arange(grid, device=x.device)[:, None]
    inside = (place >= cell * length // grid) & (place < -(-(cell + 1) * length // grid))
    return (inside / inside.sum(1, keepdim=True)).to(x.dtype)


class PyramidPooling(nn.Module):
    """Means over grids of several sizes next to the map itself, fused.

    Source: Sec. 3.2 of arXiv 1612.01105.

    Args:
        in_channels: of the map.
        channels: of every pooled map and of the output.
        grids: sides of the grids.
        norm_layer: channels -> normalisation.
    """

    def __init__(
        self, in_channels: int, channels: int, grids: Sequence[int], norm_layer: Norm
    ) -> None:
        super().__init__()
        self.grids = tuple(grids)
        self.branches = nn.ModuleList(
            ConvNormReLU(in_channels, channels, 1, norm_layer) for _ in self.grids
        )
        self.fuse = ConvNormReLU(in_channels + len(self.grids) * channels, channels, 3, norm_layer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, channels, H, W)."""
        pool = _pool_symbolic if torch.compiler.is_exporting() else _pool
        pooled = [
            pool(x, grid, branch) for branch, grid in zip(self.branches, self.grids, strict=True)
        ]
        return self.fuse(torch.cat([x, *pooled], dim=1))


class FCNHead(nn.Module):
    """One 3x3 convolution and a classifier on one map.

    Source: the auxiliary head of arXiv 1612.01105, Sec. 3.3, in the width of the published models.

    Args:
        in_channels: of the map.
        num_classes: channels of the output.
        channels: between the two.
        dropout: of whole channels before the classifier.
        norm_layer: channels -> normalisation.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        *,
        channels: int = 256,
        dropout: float = 0.1,
        norm_layer: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.conv = ConvNormReLU(in_channels, channels, 3, norm_layer)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, num_classes, H, W) logits."""
        return self.classifier(self.dropout(self.conv(x)))


class UPerNet(nn.Module):
    """Pyramid pooling on the coarsest map, a top-down pyramid, and all its levels fused.

    Source: Fig. 4 of arXiv 1807.10221, its semantic part, in the form of the published ViT-CoMer
    models: with the auxiliary head, 150 classes and the segmentation variant of the backbone it
    has the paper's 38.7, 61.4 and 144.7 M parameters.

    Args:
        in_channels: of the four maps, finest first.
        num_classes: channels of the output.
        channels: of everything inside.
        grids: of the pyramid pooling.
        dropout: of whole channels before the classifier.
        norm_layer: channels -> normalisation.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_classes: int,
        *,
        channels: int = 512,
        grids: Sequence[int] = (1, 2, 3, 6),
        dropout: float = 0.1,
        norm_layer: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        *fine, coarsest = in_channels
        self.pooling = PyramidPooling(coarsest, channels, grids, norm_layer)
        self.laterals = nn.ModuleList(ConvNormReLU(c, channels, 1, norm_layer) for c in fine)
        self.outputs = nn.ModuleList(ConvNormReLU(channels, channels, 3, norm_layer) for _ in fine)
        self.fuse = ConvNormReLU(len(in_channels) * channels, channels, 3, norm_layer)
        self.dropout = nn.Dropout2d(dropout)
        self.classifier = nn.Conv2d(channels, num_classes, 1)
        _initialise(self)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Four maps, finest first -> (B, num_classes, H, W) logits, of the finest map's size."""
        *fine, coarsest = maps
        last = top = self.pooling(coarsest)
        levels = []
        for lateral, output, x in reversed(
            list(zip(self.laterals, self.outputs, fine, strict=True))
        ):
            x = lateral(x)
            last = x + _resize(last, x)
            levels.append(output(last))
        levels = [*reversed(levels), top]
        fused = self.fuse(torch.cat([_resize(level, levels[0]) for level in levels], dim=1))
        return self.classifier(self.dropout(fused))


class UPerNetHead(nn.Module):
    """UPerNet, its auxiliary FCN head and their losses: the head of a semantic segmentor.

    Args:
        in_channels: of the maps, finest first.
        num_classes: classes.
        channels: inside UPerNet.
        auxiliary_channels: inside the auxiliary head.
        in_features: names of the maps, of strides 4, 8, 16 and 32.
        auxiliary_feature: the map that the auxiliary head reads.
        auxiliary_weight: of its loss.
        dropout: of whole channels before both classifiers.
        ignore_value: label of pixels that do not train.
        norm_layer: channels -> normalisation.
    """

    def __init__(
        self,
        *,
        in_channels: Sequence[int],
        num_classes: int,
        channels: int = 512,
        auxiliary_channels: int = 256,
        in_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        auxiliary_feature: str = "res4",
        auxiliary_weight: float = 0.4,
        dropout: float = 0.1,
        ignore_value: int = 255,
        norm_layer: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        self.in_features = tuple(in_features)
        self.auxiliary_feature = auxiliary_feature
        self.auxiliary_weight = auxiliary_weight
        self.ignore_value = ignore_value
        self.decoder = UPerNet(
            in_channels, num_classes, channels=channels, dropout=dropout, norm_layer=norm_layer
        )
        self.auxiliary = FCNHead(
            in_channels[self.in_features.index(auxiliary_feature)],
            num_classes,
            channels=auxiliary_channels,
            dropout=dropout,
            norm_layer=norm_layer,
        )

    def forward(
        self, features: Mapping[str, Tensor], targets: Tensor | None = None
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Features -> losses in training, logits otherwise.

        Args:
            features: name -> (B, C, H/s, W/s), those of ``in_features`` with s = 4, 8, 16, 32.
            targets: (B, H, W) int64 classes and `ignore_value`; read in training only.

        Returns:
            In training None and the losses; otherwise (B, num_classes, H, W) logits and no losses.
        """
        logits = self.decoder([features[name] for name in self.in_features])
        if not self.training:
            scale = F.interpolate(logits.float(), scale_factor=4, mode="bilinear")
            return scale, {}
        if targets is None:
            raise ValueError("in training UPerNetHead needs targets")
        auxiliary = self.auxiliary(features[self.auxiliary_feature])
        return None, {
            "loss_sem_seg": self.loss(logits, targets),
            "loss_auxiliary": self.auxiliary_weight * self.loss(auxiliary, targets),
        }

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy at the labels' size, a mean over the pixels that are not ignored."""
        logits = F.interpolate(
            logits.float(), size=targets.shape[-2:], mode="bilinear", align_corners=False
        )
        total = F.cross_entropy(logits, targets, ignore_index=self.ignore_value, reduction="sum")
        # At least one: a batch without a label has loss 0, not NaN.
        return total / (targets != self.ignore_value).sum().clamp(min=1)


def _initialise(head: "FCNHead | UPerNet") -> None:
    """Kaiming for convolutions in front of a ReLU, N(0, 0.01) for the classifier."""
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    nn.init.normal_(head.classifier.weight, std=0.01)
    assert head.classifier.bias is not None
    nn.init.zeros_(head.classifier.bias)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    """Bilinear, to the size of another map."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)
