"""Backbone maps -> maps of one width, and coarser ones."""

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from ...layers.strided_conv import StridedConv2d


class ChannelMapper(nn.Module):
    """A 1x1 convolution and a group norm for every map, strided 3x3 convolutions for more.

    Source: Sec. 4.1 of arXiv 2010.04159 (Deformable DETR), its multi-scale features.

    Args:
        in_features: names of the backbone's maps, finest first.
        in_channels: channels of each.
        dim: channels C of the outputs.
        num_levels: maps in all; those beyond the backbone's are each half of the one before.
        norm_groups: groups of the group norms.

    Raises:
        ValueError: for arguments that do not fit together.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str] = ("res3", "res4", "res5"),
        in_channels: Sequence[int],
        dim: int = 256,
        num_levels: int = 4,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        if len(in_features) != len(in_channels) or num_levels < len(in_features):
            raise ValueError(
                f"in_features {list(in_features)} need as many in_channels, got {list(in_channels)}, "
                f"and at least as many num_levels, got {num_levels}"
            )
        if dim % norm_groups:
            raise ValueError(f"dim {dim} must be a multiple of norm_groups {norm_groups}")
        self.in_features = tuple(in_features)
        self.in_channels = tuple(in_channels)
        self.num_levels = num_levels
        convs = [nn.Conv2d(channels, dim, 1, bias=False) for channels in in_channels]
        # The first one beyond reads the backbone's coarsest map itself.
        more = [in_channels[-1], *[dim] * num_levels]
        convs += [
            StridedConv2d(more[i], dim, 3, stride=2, padding=1, bias=False)
            for i in range(num_levels - len(in_features))
        ]
        self.projections = nn.ModuleList(
            nn.Sequential(conv, nn.GroupNorm(norm_groups, dim)) for conv in convs
        )
        for conv in convs:
            nn.init.xavier_uniform_(conv.weight)

    def forward(self, features: Mapping[str, Tensor]) -> list[Tensor]:
        """Name -> (B, C_i, H_i, W_i) -> ``num_levels`` maps (B, C, H_i, W_i), finest first."""
        given = [features[name] for name in self.in_features]
        maps = [proj(x) for proj, x in zip(self.projections, given, strict=False)]
        x = given[-1]
        for projection in self.projections[len(given) :]:
            x = projection(x)
            maps.append(x)
        return maps
