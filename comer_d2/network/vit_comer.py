"""The whole network: Figure 3 of arXiv 2403.07392, left to right."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.deform_attn import MSDeformAttn
from ..layers.levels import Levels, map_to_tokens
from ..layers.narrow import narrowed
from ..layers.resize import resize_bilinear
from .init import draw_layers
from .interaction import (
    MRFP,
    NUM_LEVELS,
    CTIToC,
    CTIToV,
    FeatureInteraction,
    FFNBranch,
    Interaction,
    projection,
    recomputed,
    recomputed_together,
)
from .pyramid import SpatialPyramid
from .trunk import LARGEST_STRIDE, STRIDES, BlockRanges, Stage, Trunk, check_image

TOKEN_STRIDE = 16  # of the middle one of the CNN tokens' levels
Norm = str | Callable[[int], nn.Module]


def norm_layer(norm: Norm) -> Callable[[int], nn.Module]:
    """Resolves a norm's name: ``"BN"``, or ``"SyncBN"``, which is the same in a single process.

    Returns:
        Channels -> module.

    Raises:
        ValueError: for any other name.
    """
    if not isinstance(norm, str):
        return norm
    if norm not in ("BN", "SyncBN"):
        raise ValueError(f"norm must be 'SyncBN', 'BN' or channels -> module, got {norm!r}")
    several = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
    return nn.SyncBatchNorm if norm == "SyncBN" and several else nn.BatchNorm2d


class ViTCoMerNet(nn.Module):
    """ViT-CoMer: a plain ViT, or a hierarchical one, and a convolutional pyramid that talk to each other.

    Images of any size: sides that do not divide by 32 are padded with zeros at the bottom and
    right, and every output is cropped to ``ceil(side / stride)``; the result is exactly that of
    padding the image outside. (In a Detectron2 model the images of a batch are padded together
    before they come here, so there is nothing left to pad.)

    Source: Sec. 3 of arXiv 2403.07392; where the paper and the released models differ, this is the
    released models' network (docs/architecture.md lists every difference).

    Args:
        vit: the trunk: a plain :class:`~comer_d2.network.ViT`, or a hierarchical network such as Swin,
            :class:`~comer_d2.network.timm_pyramid.TimmPyramid`. Channels D (of a hierarchical one,
            those at stride 16) and the drop path rate of the interactions are its own.
        stem_width: channels of the CNN branch at stride 4.
        interaction_indexes: (first, last) ViT block of every interaction, in order. ``None``: four of
            the same length of a plain ViT; one for each stage of stride 8, 16 and 32 of a hierarchical
            one.
        deform_num_heads: heads of the deformable attentions.
        deform_num_points: sampling points per head and level.
        deform_ratio: value channels of the deformable attentions in units of D.
        cffn_ratio: hidden channels of the ConvFFN in units of D; ``None``: no feed-forward branches.
        mrfp_ratio: hidden channels of MRFP in units of D.
        mrfp_kernel_sizes: kernel sizes of MRFP.
        use_mrfp: MRFP, or not; one bool, or one per interaction. So are the next three.
        use_cti_to_v: CNN to ViT, or not.
        use_cti_to_c: ViT to CNN, or not.
        cnn_feature_interaction: whether the CNN tokens attend to themselves in CTI to C.
        num_extra_cti: CTI-to-C blocks appended to the last interaction.
        gate_init: initial value of the gates of CTI to V.
        vit_features: the ViT features that are added to the outputs: ``"last"``, the final ones
            (detection); ``"stages"``, those after interaction 1, 2, 3, 4 to stride 4, 8, 16, 32
            (segmentation); ``"none"``. A hierarchical trunk has ``"stages"``, which are its maps of
            stride 4, 8, 16, 32, each added to its own output, and ``"none"``.
        use_act_checkpoint: recompute activations in the backward pass: less memory, more time.
            True: those of every block and every part of an interaction by itself, the least memory;
            ``"stage"``: those of each interaction with its blocks at once.
        norm: normalisation of the CNN branch, MRFP and the outputs: a name, or channels -> module.
            ``"SyncBN"``, as released, is synchronised wherever there is more than one process.
        out_features: the outputs wanted, of ``"res2"``, ``"res3"``, ``"res4"``, ``"res5"``, in any
            order. Parameters that only serve the others stay in the ``state_dict`` but are frozen:
            DistributedDataParallel refuses parameters that never get a gradient.
        square_pad: if positive, the side in pixels of the squares that images are to be padded to.

    Raises:
        ValueError: for arguments that do not fit together, naming them.
    """

    # Name of a norm -> its constructor.
    norm_layer = staticmethod(norm_layer)

    def __init__(
        self,
        vit: Trunk,
        *,
        stem_width: int = 64,
        interaction_indexes: BlockRanges | None = None,
        deform_num_heads: int = 12,
        deform_num_points: int = 4,
        deform_ratio: float = 0.5,
        cffn_ratio: float | None = 0.25,
        mrfp_ratio: float = 0.5,
        mrfp_kernel_sizes: Sequence[int] = (3, 5),
        use_mrfp: bool | Sequence[bool] = True,
        use_cti_to_v: bool | Sequence[bool] = True,
        use_cti_to_c: bool | Sequence[bool] = True,
        cnn_feature_interaction: bool | Sequence[bool] = True,
        num_extra_cti: int = 4,
        gate_init: float = 0.0,
        vit_features: Literal["last", "stages", "none"] = "last",
        use_act_checkpoint: bool | Literal["stage"] = False,
        norm: Norm = "SyncBN",
        out_features: Sequence[str] = tuple(STRIDES),
        square_pad: int = 0,
    ) -> None:
        super().__init__()
        check_arguments(vit_features, out_features)
        if use_act_checkpoint not in (True, False, "stage"):
            raise ValueError(
                f"use_act_checkpoint must be True, False or 'stage', got {use_act_checkpoint!r}"
            )
        if num_extra_cti < 0:
            raise ValueError(f"num_extra_cti must be at least 0, got {num_extra_cti}")
        stages = vit.stages(interaction_indexes)
        map_dims = vit.map_dims(vit_features, len(stages))
        embed_dim, num_interactions = vit.embed_dim, len(stages)
        self.embed_dim = embed_dim
        self.stages = stages
        self.interaction_indexes = [(stage.first, stage.last) for stage in stages]
        self.vit_features = vit_features
        self.use_act_checkpoint = use_act_checkpoint
        self.out_features = list(out_features)
        self.square_pad = square_pad

        self.vit = vit
        make_norm = self.norm_layer(norm)
        self.pyramid = SpatialPyramid(vit.in_chans, stem_width, embed_dim, make_norm)
        self.level_embed = nn.Parameter(torch.zeros(NUM_LEVELS, embed_dim))

        def attention() -> MSDeformAttn:
            return MSDeformAttn(
                embed_dim, NUM_LEVELS, deform_num_heads, deform_num_points, deform_ratio
            )

        def ffn() -> FFNBranch | None:
            if cffn_ratio is None:
                return None
            hidden_dim = int(embed_dim * cffn_ratio)
            if hidden_dim < 1:
                raise ValueError(
                    f"cffn_ratio {cffn_ratio} of {embed_dim} channels leaves the ConvFFN none: give a "
                    "larger one, or None for no feed-forward branches"
                )
            return FFNBranch(embed_dim, hidden_dim, vit.drop_path_rate)

        def mrfp() -> MRFP:
            return MRFP(embed_dim, int(embed_dim * mrfp_ratio), mrfp_kernel_sizes, make_norm)

        def cti_to_v(stage: Stage) -> CTIToV:
            return CTIToV(embed_dim, stage.dim, stage.level, attention(), ffn(), gate_init)

        def cti_to_c(stage: Stage, attend: bool, extra: bool) -> CTIToC:
            return CTIToC(
                stage.level,
                ffn() if extra else None,
                FeatureInteraction(embed_dim, attention(), ffn()) if attend else None,
            )

        switches = {
            name: per_interaction(name, value, num_interactions)
            for name, value in {
                "use_mrfp": use_mrfp,
                "use_cti_to_v": use_cti_to_v,
                "use_cti_to_c": use_cti_to_c,
                "cnn_feature_interaction": cnn_feature_interaction,
            }.items()
        }
        self.interactions = nn.ModuleList()
        for i, stage in enumerate(stages):
            on = {name: values[i] for name, values in switches.items()}
            attend = on["cnn_feature_interaction"]
            is_last = i == num_interactions - 1
            self.interactions.append(
                Interaction(
                    embed_dim,
                    stage,
                    mrfp() if on["use_mrfp"] else None,
                    cti_to_v(stage) if on["use_cti_to_v"] else None,
                    cti_to_c(stage, attend, extra=False) if on["use_cti_to_c"] else None,
                    [cti_to_c(stage, attend, extra=True) for _ in range(num_extra_cti * is_last)],
                    bool(use_act_checkpoint) and use_act_checkpoint != "stage",
                )
            )

        self.upsample = nn.ConvTranspose2d(embed_dim, embed_dim, 2, stride=2)
        self.out_norms = nn.ModuleList(make_norm(embed_dim) for _ in STRIDES)
        self.out_projections = nn.ModuleList(projection(dim, embed_dim) for dim in map_dims)
        self.draw_weights()
        self.freeze_unused()

    def draw_weights(self) -> None:
        """Draws initial weights as the released training did, but for a ViT that has some already."""
        draw_vit = not self.vit.is_drawn
        if draw_vit:
            self.vit.draw_layers()
        draw_layers(self.pyramid, self.interactions, self.upsample, self.out_projections)
        for module in self.interactions.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        if draw_vit:
            self.vit.draw_tables()
            self.vit.is_drawn = True
        nn.init.normal_(self.level_embed)

    def freeze_unused(self) -> None:
        """Freezes what only serves outputs that are not wanted."""
        for i, name in enumerate(STRIDES):
            if name not in self.out_features:
                self.out_norms[i].requires_grad_(False)
                self.out_projections[i : i + 1].requires_grad_(False)
        if "res2" not in self.out_features:  # the one level that the tokens do not hold
            self.upsample.requires_grad_(False)
            self.pyramid.projections[0].requires_grad_(False)

    @property
    def size_divisibility(self) -> int:
        """Sides, in pixels, must divide by this for every level to be half of the one before."""
        return LARGEST_STRIDE

    @property
    def padding_constraints(self) -> dict[str, int]:
        """What a batch of images is to be padded to; Detectron2's models read it."""
        return {"size_divisibility": self.size_divisibility, "square_size": self.square_pad}

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image -> feature maps.

        Args:
            image: (B, in_chans, h, w), normalised; any size of at least one pixel.

        Returns:
            Of each of ``out_features`` (B, embed_dim, ceil(h/s), ceil(w/s)); ``"res2"``, ``"res3"``,
            ``"res4"``, ``"res5"`` have the strides s = 4, 8, 16, 32.

        Raises:
            ValueError: if ``image`` is not (B, in_chans, h, w) or is empty.
        """
        check_image(image, self.vit.in_chans)
        h, w = image.shape[-2:]
        if torch.compiler.is_compiling() or h % LARGEST_STRIDE or w % LARGEST_STRIDE:
            image = F.pad(image, (0, -w % LARGEST_STRIDE, 0, -h % LARGEST_STRIDE))
        levels = Levels.around(image.shape[-2] // TOKEN_STRIDE, image.shape[-1] // TOKEN_STRIDE)

        device = image.device.type
        with narrowed(self.pyramid, device=device):
            stem, c = self.cnn_tokens(image)
        x = self.vit.start(image, recomputed if self.use_act_checkpoint else called)
        x_after, c = self.interact(x, c, levels)
        vit_maps = []
        if self.vit_features != "none":
            vit_maps = self.vit.maps(self.vit_features, x, x_after, levels)
        with narrowed(self.upsample, self.out_projections, device=device):
            outputs = self.output_maps(stem, c, vit_maps, levels)
        maps = dict(zip(STRIDES, outputs, strict=True))
        return {
            name: crop(maps[name], -(-h // STRIDES[name]), -(-w // STRIDES[name]))
            for name in self.out_features
        }

    def cnn_tokens(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, h, w) -> stride-4 map (B, D, h/4, w/4), CNN tokens (B, S, D)."""
        # Channels-last, so that a token's channels lie side by side and maps and tokens are views
        # of each other.
        stem, *maps = self.pyramid(image.contiguous(memory_format=torch.channels_last))
        embed = self.level_embed.to(stem.dtype)
        tokens = [map_to_tokens(m) + e for m, e in zip(maps, embed, strict=True)]
        return stem, torch.cat(tokens, dim=1)

    def interact(
        self, x: Tensor, c: Tensor, levels: Levels
    ) -> tuple[list[tuple[Stage, Tensor]], Tensor]:
        """Runs the interactions and the blocks of the trunk inside them.

        Args:
            x: (B, P + N, C) tokens of the trunk, the prefix tokens first.
            c: (B, S, D) CNN tokens.
            levels: of the CNN tokens.

        Returns:
            Every stage of the trunk with its tokens after it, and the final CNN tokens.
        """
        rope = self.vit.rope_of(*levels.spatial_shapes[1])
        x_after = []
        for stage, interaction in zip(self.stages, self.interactions, strict=True):
            x = self.vit.enter(x, stage, levels)
            size = levels.spatial_shapes[stage.level]
            blocks = partial(self.vit.run_blocks, stage=stage, size=size, rope=rope)
            modules = [interaction, *self.vit.blocks_of(stage)]
            # Stage by stage, so that gradients are ready for other processes stage by stage.
            with narrowed(*modules, device=x.device.type):
                if self.use_act_checkpoint == "stage":
                    x, c = recomputed_together(modules, interaction, x, c, levels, blocks)
                else:
                    x, c = interaction(x, c, levels, blocks)
            x_after.append((stage, x))
        return x_after, c

    def output_maps(
        self, stem: Tensor, c: Tensor, vit_maps: list[Tensor], levels: Levels
    ) -> list[Tensor]:
        """Puts both branches together.

        Args:
            stem: (B, D, h/4, w/4).
            c: (B, S, D) final CNN tokens.
            vit_maps: of the trunk, one to add to each output, (B, C_i, h_i, w_i); or none.
            levels: of the CNN tokens.

        Returns:
            (B, D, h/s, w/s) for s = 4, 8, 16, 32.
        """
        fine, middle, coarse = levels.maps(c)
        maps = [self.upsample(fine) + stem, fine, middle, coarse]
        for i, (x, proj) in enumerate(zip(vit_maps, self.out_projections, strict=True)):
            x = proj(x.to(c.dtype).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            maps[i] = maps[i] + resize_bilinear(x, maps[i])
        return [norm(m) for norm, m in zip(self.out_norms, maps, strict=True)]


def crop(x: Tensor, height: int, width: int) -> Tensor:
    """The upper left height x width of a map (B, D, H, W); slices would ask an export's symbols for their size."""
    return x.narrow(-2, 0, height).narrow(-1, 0, width)


def called(module: nn.Module, *inputs: object) -> Tensor:
    """Calls a module."""
    return module(*inputs)


def per_interaction(name: str, value: bool | Sequence[bool], num_interactions: int) -> list[bool]:
    """One switch per interaction, from one bool or from a sequence of them.

    Raises:
        ValueError: naming the argument, for a sequence of another length.
    """
    if isinstance(value, bool):
        return [value] * num_interactions
    if len(value) != num_interactions:
        raise ValueError(f"{name} has {len(value)} values for {num_interactions} interactions")
    return list(value)


def check_arguments(vit_features: str, out_features: Sequence[str]) -> None:
    """Raises ValueError for features of the ViT, or outputs, that do not exist."""
    if vit_features not in ("last", "stages", "none"):
        raise ValueError(f"vit_features must be 'last', 'stages' or 'none', got {vit_features!r}")
    if not out_features or not set(out_features) <= set(STRIDES):
        raise ValueError(f"out_features must be some of {list(STRIDES)}, got {list(out_features)}")
