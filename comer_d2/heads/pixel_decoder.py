"""Mask2Former's pixel decoder: deformable attention over the coarse maps, an FPN for the fine ones."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.levels import Levels
from ..layers.positions import sine_position_encoding
from ..layers.resize import resize_bilinear
from .deformable_encoder_layer import DeformableEncoderLayer


class MSDeformAttnPixelDecoder(nn.Module):
    """Backbone features -> features for the mask decoder and for the masks.

    Parameters have the names of the official project, but for ``sampling`` of the attentions.

    Source: Sec. 3.2.1 of arXiv 2112.01527.

    Args:
        in_features: names of the backbone's maps, finest first, the first at stride 4.
        in_channels: channels of each.
        transformer_in_features: those of ``in_features`` that the encoder works on, the coarsest
            ones; an FPN brings the result up to the others.
        conv_dim: channels C of the encoder and the FPN.
        mask_dim: channels of the mask features.
        num_heads: attention heads.
        num_layers: encoder layers.
        ffn_dim: hidden channels of their feed-forward networks.
        num_points: sampling points per head and level.
        norm_groups: groups of the group norms.

    Raises:
        ValueError: for arguments that do not fit together, naming them.
    """

    def __init__(
        self,
        *,
        in_features: Sequence[str] = ("res2", "res3", "res4", "res5"),
        in_channels: Sequence[int],
        transformer_in_features: Sequence[str] = ("res3", "res4", "res5"),
        conv_dim: int = 256,
        mask_dim: int = 256,
        num_heads: int = 8,
        num_layers: int = 6,
        ffn_dim: int = 1024,
        num_points: int = 4,
        norm_groups: int = 32,
    ) -> None:
        super().__init__()
        num_levels = len(transformer_in_features)
        if list(in_features[len(in_features) - num_levels :]) != list(transformer_in_features):
            raise ValueError(
                f"transformer_in_features {list(transformer_in_features)} must be the last of "
                f"in_features {list(in_features)}"
            )
        if len(in_features) != len(in_channels):
            raise ValueError(f"{len(in_features)} in_features, but in_channels {list(in_channels)}")
        if conv_dim % norm_groups or conv_dim % 4:
            raise ValueError(
                f"conv_dim {conv_dim} must be a multiple of norm_groups {norm_groups}, and of 4 "
                "for the position encoding"
            )
        # Coarsest first, as in the official project.
        self.encoder_features = list(transformer_in_features)[::-1]
        self.fpn_features = list(in_features[: len(in_features) - num_levels])
        channels = dict(zip(in_features, in_channels, strict=True))
        self.conv_dim = conv_dim
        self.input_proj = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels[name], conv_dim, 1), nn.GroupNorm(norm_groups, conv_dim)
            )
            for name in self.encoder_features
        )
        self.transformer = Encoder(conv_dim, num_levels, num_layers, num_heads, num_points, ffn_dim)
        self.mask_features = nn.Conv2d(conv_dim, mask_dim, 1)
        for k, name in enumerate(self.fpn_features, start=1):
            self.add_module(f"adapter_{k}", ConvNorm(channels[name], conv_dim, 1, norm_groups))
            self.add_module(f"layer_{k}", ConvNorm(conv_dim, conv_dim, 3, norm_groups))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises from scratch, as the official project does."""
        for proj in self.input_proj.modules():
            if isinstance(proj, nn.Conv2d):
                assert proj.bias is not None
                nn.init.xavier_uniform_(proj.weight)
                nn.init.zeros_(proj.bias)
        for module in self.children():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Decodes the maps of a backbone.

        Args:
            features: name -> (B, C_i, H_i, W_i), at least those of ``in_features``.

        Returns:
            The mask features (B, mask_dim, H, W) at the finest stride, and the maps (B, conv_dim,
            H_i, W_i) for the mask decoder, coarsest first.
        """
        maps = [
            proj(features[name])
            for name, proj in zip(self.encoder_features, self.input_proj, strict=True)
        ]
        maps = self.transformer(maps)
        finest = maps[-1]
        for k in range(len(self.fpn_features), 0, -1):
            lateral = getattr(self, f"adapter_{k}")(features[self.fpn_features[k - 1]])
            # In place: the finest maps are the largest of all, and norms need not their outputs.
            lateral += resize_bilinear(finest, lateral)
            finest = F.relu_(getattr(self, f"layer_{k}")(lateral))
        return self.mask_features(finest), maps


class ConvNorm(nn.Conv2d):
    """A convolution without bias and the group norm after it.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd side of the kernel.
        norm_groups: groups of the norm.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, norm_groups: int
    ) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.norm = nn.GroupNorm(norm_groups, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) -> (B, out_channels, H, W)."""
        return self.norm(super().forward(x))


class Encoder(nn.Module):
    """Deformable self-attention among the tokens of several maps.

    Args:
        dim: channels C of a token.
        num_levels: number of maps.
        num_layers: layers.
        num_heads: attention heads.
        num_points: sampling points per head and level.
        ffn_dim: hidden channels of the feed-forward networks.
    """

    def __init__(
        self,
        dim: int,
        num_levels: int,
        num_layers: int,
        num_heads: int,
        num_points: int,
        ffn_dim: int,
    ) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(num_levels, dim))
        nn.init.normal_(self.level_embed)
        layers = nn.ModuleList(
            DeformableEncoderLayer(dim, num_levels, num_heads, num_points, ffn_dim)
            for _ in range(num_layers)
        )
        # Only for its name in the checkpoints.
        self.encoder = nn.ModuleDict({"layers": layers})

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps (B, C, H_i, W_i), coarsest first -> maps of the same shapes."""
        levels = Levels(tuple((m.shape[-2], m.shape[-1]) for m in maps))
        x = levels.merge(maps)
        positions = torch.cat(
            [
                sine_position_encoding(h, w, x.shape[-1], x.device) + embed
                for (h, w), embed in zip(levels.spatial_shapes, self.level_embed, strict=True)
            ]
        )
        position = positions.to(self.level_embed.dtype)  # float32 also under autocast
        for layer in self.encoder["layers"].children():
            x = layer(x, position, levels.reference_points(x.device, x.dtype), levels)
        return levels.maps(x)
