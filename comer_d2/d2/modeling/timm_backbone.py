"""Any hierarchical network of timm as a Detectron2 Backbone."""

from collections.abc import Mapping, Sequence
from typing import Any

from detectron2.modeling import Backbone
from torch import Tensor

from ...network.timm_pyramid import TimmPyramid
from ...network.trunk import LARGEST_STRIDE, STRIDES


class TimmBackbone(Backbone):
    """Swin, ConvNeXt, PVTv2, FocalNet, ResNet ...: the backbones that ViT-CoMer is compared with.

    Args:
        name: of a timm model.
        out_features: names of the maps to return: some of res2, res3, res4, res5.
        in_chans: channels of the image.
        drop_path_rate: of its blocks; ``None`` leaves timm's default.
        arguments: more arguments of the timm model, such as ``norm_layer`` or ``window_size``.
        square_pad: side in pixels that images are padded to at least; 0 for a multiple of 32.

    Raises:
        ValueError: as :class:`~comer_d2.network.timm_pyramid.TimmPyramid`, or for unknown
            ``out_features``.
    """

    def __init__(
        self,
        name: str,
        *,
        out_features: Sequence[str] = tuple(STRIDES),
        in_chans: int = 3,
        drop_path_rate: float | None = None,
        arguments: Mapping[str, Any] | None = None,
        square_pad: int = 0,
    ) -> None:
        super().__init__()
        unknown = [feature for feature in out_features if feature not in STRIDES]
        if unknown or not out_features:
            raise ValueError(
                f"out_features must be some of {list(STRIDES)}, got {list(out_features)}"
            )
        self.trunk = TimmPyramid(
            name, in_chans=in_chans, drop_path_rate=drop_path_rate, arguments=arguments
        )
        self.square_pad = square_pad
        # The names that Backbone.output_shape reads.
        self._out_features = list(out_features)
        self._out_feature_strides = {feature: STRIDES[feature] for feature in out_features}
        self._out_feature_channels = {
            feature: self.trunk.channels[feature] for feature in out_features
        }

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image -> the maps named in ``out_features``.

        Args:
            image: (B, in_chans, h, w), normalised; any size.

        Returns:
            Name -> (B, C_i, ceil(h/s), ceil(w/s)), s the stride of that name.
        """
        maps = self.trunk(image)
        return {name: maps[name] for name in self._out_features}

    @property
    def size_divisibility(self) -> int:
        """Sides, in pixels, must divide by this for every level to be half of the one before."""
        return LARGEST_STRIDE

    @property
    def padding_constraints(self) -> dict[str, int]:
        """What Detectron2's models pad a batch of images to."""
        return {"size_divisibility": self.size_divisibility, "square_size": self.square_pad}
