"""Any hierarchical network of timm as maps of stride 4, 8, 16 and 32."""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.layers import Format
from timm.models import is_model, is_model_in_modules
from torch import Tensor, nn

from ..layers.levels import Levels, map_to_tokens, tokens_to_map
from .trunk import LARGEST_STRIDE, STRIDES, BlockRanges, Call, Stage, check_cover, check_image

# Networks of strides 4 to 32 whose attention or position table is made for one image size, and
# those whose unpadded convolutions miss the strides: by timm's module or model, with what to take instead.
UNFIT = {
    "bat_resnext26ts": "resnext26ts",
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
    "mvitv2": "pvt_v2_b2",
    "xception": "xception41p",
}
# Those that take images of any size once they are told not to compare it with their own; nor to leave
# out the shift of windows where a map of that size is one window, as Swin's last is. Swin's detectors
# shift in every stage.
SIZE_CHECKING = ("swin_transformer", "swin_transformer_v2", "swin_transformer_v2_cr")
# What the network itself decides, or has as an argument of its own.
SETTLED = ("drop_path_rate", "features_only", "in_chans", "out_indices", "pretrained")
# Those whose stages are a change of size and then blocks, with room for ViT-CoMer in between.
STAGED = (
    "convnext",
    "davit",
    "focalnet",
    "inception_next",
    "mambaout",
    "swin_transformer",
    "swin_transformer_v2",
)


class TimmPyramid(nn.Module):
    """A hierarchical network of timm (Swin, ConvNeXt, PVTv2, ResNet ...), for images of any size.

    Its maps are channels-first, those of other strides are dropped, and images are padded to a
    multiple of 32, so that every level is half of the one before.

    It stands alone, as a baseline, or is given to :class:`~comer_d2.network.ViTCoMerNet` as its trunk:
    Swin, ConvNeXt and others of the same form.

    Args:
        name: of a timm model.
        in_chans: channels of the image.
        drop_path_rate: of its blocks and of ViT-CoMer's branches. ``None``: timm's default, as models
            that have no drop path need, and 0.
        arguments: more arguments of the timm model, as ``window_size``.

    Attributes:
        arguments: of the timm model, all that were given.
        channels: channels C_i of every map, by its name.
        embed_dim: those at stride 16, which a ViT-CoMer around it has.

    Raises:
        ValueError: if timm has no such model, it does not give maps of strides 4 to 32 for images
            of any size, or it cannot be made with these arguments.
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
        given: dict[str, Any] = {"in_chans": in_chans}
        if is_model_in_modules(name, SIZE_CHECKING):
            given |= {"strict_img_size": False, "always_partition": True}
        if drop_path_rate is not None:
            if not 0 <= drop_path_rate <= 1:
                raise ValueError(f"drop_path_rate must be in [0, 1], got {drop_path_rate}")
            given["drop_path_rate"] = drop_path_rate
        more = plain(arguments or {})
        settled = sorted(more.keys() & set(SETTLED))
        if settled:
            raise ValueError(
                f"arguments of {name} cannot have {', '.join(settled)}: in_chans and drop_path_rate are "
                "given beside them, weights are loaded afterwards, and the maps are those of strides "
                f"{list(STRIDES.values())}"
            )
        given |= more
        try:
            with torch.device("meta"):
                features = timm.create_model(name, features_only=True, **given).feature_info
        except Exception as error:  # whatever timm's constructor meets
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
        self.arguments = given
        self.net = timm.create_model(name, features_only=True, out_indices=indices, **given)
        self.channels = dict(zip(STRIDES, self.net.feature_info.channels(), strict=True))
        self.channels_last = getattr(self.net, "output_fmt", None) == Format.NHWC
        self.embed_dim = self.channels["res4"]
        self.drop_path_rate = drop_path_rate or 0.0
        self.is_drawn = True

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
        check_image(image, self.in_chans)
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
            result[name] = m[..., : -(-h // stride), : -(-w // stride)]
        return result

    def draw_layers(self) -> None:
        """Nothing: timm draws what it makes."""

    def draw_tables(self) -> None:
        """Nothing: timm draws what it makes."""

    def parts(self) -> tuple[list[Any], list[Any]]:
        """What comes before the four stages, and these, each with ``downsample`` and ``blocks``.

        Raises:
            ValueError: if the stages of this network are of another form.
        """
        if not is_model_in_modules(self.name, STAGED):
            raise ValueError(
                f"{self.name} has no place for ViT-CoMer between its changes of size and its blocks: "
                f"take a network of timm's {', '.join(STAGED)}"
            )
        parts = list(self.net.children())
        return parts[: -len(STRIDES)], parts[-len(STRIDES) :]

    def block_ranges(self) -> list[range]:
        """Numbers of the blocks of every stage."""
        ranges, start = [], 0
        for stage in self.parts()[1]:
            ranges.append(range(start, start + len(stage.blocks)))
            start = ranges[-1].stop
        return ranges

    def stages(self, interaction_indexes: BlockRanges | None) -> list[Stage]:
        """The stages of some (first, last) blocks each; of ``None``, those of stride 8, 16 and 32.

        Blocks count from 0, at stride 4, where there are no interactions.

        Raises:
            ValueError: for ranges that leave out a block of the other strides or cross two.
        """
        _, *ranges = self.block_ranges()
        if interaction_indexes is None:
            interaction_indexes = [(blocks[0], blocks[-1]) for blocks in ranges]
        after_first = range(ranges[0].start, ranges[-1].stop)
        own = ", ".join(f"{blocks[0]}..{blocks[-1]}" for blocks in ranges)
        of = f"the stages of strides 8, 16 and 32 of {self.name} are {own}"
        check_cover(interaction_indexes, after_first, of)
        stages = []
        for first, last in interaction_indexes:
            level = next(i for i, blocks in enumerate(ranges) if first in blocks)
            if last not in ranges[level]:
                raise ValueError(f"an interaction's blocks {first}..{last} cross two stages; {of}")
            dim = list(self.channels.values())[level + 1]
            stages.append(Stage(first, last, dim, level))
        return stages

    def map_dims(self, features: str, num_stages: int) -> list[int]:
        """Channels of the maps for the outputs of a ViT-CoMer: its own.

        Raises:
            ValueError: for ``"last"``.
        """
        if features == "last":
            raise ValueError(
                f"vit_features='last' is of plain ViTs: {self.name} has a map of every stride, take "
                "'stages'"
            )
        return [] if features == "none" else list(self.channels.values())

    def start(self, image: Tensor, call: Call) -> Tensor:
        """Image (B, in_chans, h, w), sides divisible by 32 -> tokens after the stage of stride 4."""
        before, (first, *_) = self.parts()
        for part in before:
            image = part(image)
        x = first.downsample(image)
        for block in first.blocks:
            x = call(block, x)
        return self.to_tokens(x)

    def enter(self, x: Tensor, stage: Stage, levels: Levels) -> Tensor:
        """Tokens (B, H*W, C) after the stage before -> in front of a stage's blocks."""
        index = stage.level + 1
        if stage.first != self.block_ranges()[index].start:
            return x  # between blocks of the same stage of the network
        height, width = levels.spatial_shapes[stage.level]
        x = self.parts()[1][index].downsample(self.to_map(x, height * 2, width * 2))
        return self.to_tokens(x)

    def blocks_of(self, stage: Stage) -> Sequence[nn.Module]:
        """The blocks of a stage."""
        index = stage.level + 1
        start = self.block_ranges()[index].start
        return self.parts()[1][index].blocks[stage.first - start : stage.last + 1 - start]

    def run_blocks(
        self, x: Tensor, call: Call, *, stage: Stage, size: tuple[int, int], rope: Tensor | None
    ) -> Tensor:
        """Tokens (B, H*W, C), the map of ``size`` (H, W), through a stage's blocks."""
        x = self.to_map(x, *size)
        for block in self.blocks_of(stage):
            x = call(block, x)
        return self.to_tokens(x)

    def rope_of(self, height: int, width: int) -> None:
        """Nothing: blocks know their own positions."""

    def maps(
        self,
        features: str,
        x_first: Tensor,
        x_after: Sequence[tuple[Stage, Tensor]],
        levels: Levels,
    ) -> list[Tensor]:
        """The network's own maps (B, C_i, h/s, w/s) of the strides s = 4, 8, 16, 32."""
        height, width = levels.spatial_shapes[0]
        maps = [tokens_to_map(x_first, height * 2, width * 2)]
        last = {stage.level: x for stage, x in x_after}  # of several at one stride
        for level, size in enumerate(levels.spatial_shapes):
            maps.append(tokens_to_map(last[level], *size))
        return maps

    def to_tokens(self, x: Tensor) -> Tensor:
        """A map in the network's own layout -> tokens (B, H*W, C)."""
        return x.flatten(1, 2) if self.channels_last else map_to_tokens(x)

    def to_map(self, x: Tensor, height: int, width: int) -> Tensor:
        """Tokens (B, H*W, C) -> a map in the network's own layout."""
        return (
            x.unflatten(1, (height, width))
            if self.channels_last
            else tokens_to_map(x, height, width)
        )


def plain(value: Any) -> Any:
    """Mappings and sequences, such as a config's, as dicts and tuples: timm goes by types."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(plain(inner) for inner in value)
    return value


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
        # Of timm:resnet50 and hf-hub:timm/resnet50, too.
        architecture = re.split("[:/]", name)[-1].split(".")[0].lower()
        names = timm.list_models()
        longer = [known for known in names if architecture and known.startswith(architecture)]
        near = longer[:5] or difflib.get_close_matches(architecture, names, n=5)
        raise ValueError(
            f"timm {timm.__version__} has no model {name!r}"
            + (f"; near it: {', '.join(near)}" if near else "; timm.list_models() has its names")
        )
    for unfit, instead in UNFIT.items():
        if name.split(".")[0] == unfit or is_model_in_modules(name, [unfit]):
            raise ValueError(
                f"{name} works at one image size only, or misses the strides 4, 8, 16 and 32: "
                f"take {instead}"
            )
