"""Any hierarchical network of timm as maps of stride 4, 8, 16 and 32."""

import math
from collections.abc import Mapping
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Format
from timm.models import is_model, is_model_in_modules
from torch import Tensor, nn

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
LARGEST_STRIDE = max(STRIDES.values())
# Networks of strides 4 to 32 whose attention or position table is made for one image size, and
# those whose unpadded convolutions miss the strides: by timm's module, with what to take instead.
UNFIT = {
    "byoanet": "a ResNet, such as resnet50d",
    "coat": "pvt_v2_b2",
    "efficientformer": "pvt_v2_b2",
    "efficientformer_v2": "pvt_v2_b2",
    "gcvit": "davit_tiny",
    "hiera": "sam2_hiera_tiny, the same network with resizable positions",
    "inception_resnet_v2": "resnet50d",
    "inception_v3": "resnet50d",
    "inception_v4": "resnet50d",
    "maxxvit": "davit_tiny or convnext_tiny",
    "xception": "xception41p",
}
# Those that take images of any size once they are told not to compare it with their own.
SIZE_CHECKING = ("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr")


class TimmPyramid(nn.Module):
    """A hierarchical network of timm (Swin, ConvNeXt, PVTv2, ResNet ...), for images of any size.

    Its maps are channels-first, those of other strides are dropped, and images are padded to a
    multiple of 32, so that every level is half of the one before.

    Args:
        name: of a timm model.
        in_chans: channels of the image.
        drop_path_rate: of its blocks; ``None`` leaves timm's default, which models without drop
            path need.
        arguments: more arguments of the timm model.

    Attributes:
        channels: channels C_i of every map, by its name.

    Raises:
        ValueError: if timm has no such model, or it does not give maps of strides 4 to 32 for
            images of any size.
    """

    def __init__(
        self,
        name: str,
        *,
        in_chans: int = 3,
        drop_path_rate: float | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        check_name(name)
        given: dict[str, Any] = {"features_only": True, "in_chans": in_chans}
        if is_model_in_modules(name, SIZE_CHECKING):
            given["strict_img_size"] = False
        if drop_path_rate is not None:
            given["drop_path_rate"] = drop_path_rate
        given.update(arguments or {})
        try:
            with torch.device("meta"):
                features = timm.create_model(name, **given).feature_info
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ValueError(f"timm cannot make {name} with {given}: {error}") from error
        strides = features.reduction()
        missing = [stride for stride in STRIDES.values() if stride not in strides]
        if missing:
            raise ValueError(
                f"{name} has maps of strides {strides}, not {missing}: a plain ViT is a `ViT`, "
                "with a simple feature pyramid or inside ViTCoMer; others cannot be used"
            )
        indices = [features.out_indices[strides.index(stride)] for stride in STRIDES.values()]
        self.name = name
        self.in_chans = in_chans
        self.net = timm.create_model(name, out_indices=indices, **given)
        self.channels = dict(zip(STRIDES, self.net.feature_info.channels(), strict=True))
        self.channels_last = getattr(self.net, "output_fmt", None) == Format.NHWC

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image -> feature maps of four strides.

        Args:
            image: (B, in_chans, h, w), normalised; any size of at least one pixel.

        Returns:
            ``{"res2", "res3", "res4", "res5"}``: (B, C_i, ceil(h/s), ceil(w/s)) for the strides
            s = 4, 8, 16, 32.

        Raises:
            ValueError: if ``image`` is not (B, in_chans, h, w) or is empty.
        """
        if image.ndim != 4 or image.shape[1] != self.in_chans or 0 in image.shape[-2:]:
            raise ValueError(
                f"image must have shape (B, {self.in_chans}, h, w) with h, w > 0, got "
                f"{tuple(image.shape)}"
            )
        h, w = image.shape[-2:]
        image = F.pad(image, (0, -w % LARGEST_STRIDE, 0, -h % LARGEST_STRIDE))
        maps = self.net(image)
        if self.channels_last:
            maps = [m.permute(0, 3, 1, 2) for m in maps]
        result = {}
        for (name, stride), m in zip(STRIDES.items(), maps, strict=True):
            if tuple(m.shape[-2:]) != (image.shape[-2] // stride, image.shape[-1] // stride):
                raise ValueError(
                    f"{self.name}'s map of stride {stride} is {tuple(m.shape[-2:])} for an image "
                    f"of {tuple(image.shape[-2:])}: this network cannot be used"
                )
            result[name] = m[..., : math.ceil(h / stride), : math.ceil(w / stride)]
        return result


def channels_of(name: str) -> dict[str, int]:
    """Channels C_i of a timm model's maps by their names, without making it.

    Raises:
        ValueError: as :class:`TimmPyramid`.
    """
    with torch.device("meta"):
        return TimmPyramid(name).channels


def check_name(name: str) -> None:
    """Checks that timm has a model and that it works at any image size.

    Raises:
        ValueError: if not.
    """
    if not is_model(name):
        near = timm.list_models(f"*{name.split('.')[0][:8]}*")[:5]
        raise ValueError(
            f"timm {timm.__version__} has no model {name!r}"
            + (f"; near it: {', '.join(near)}" if near else "")
        )
    for module, instead in UNFIT.items():
        if is_model_in_modules(name, [module]):
            raise ValueError(
                f"{name} works at one image size only, or misses the strides 4, 8, 16 and 32: "
                f"take {instead}"
            )
