"""The whole network: Figure 3 of arXiv 2403.07392, left to right."""

import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from torch import Tensor, nn

from ..layers.deform_attn import MSDeformAttn
from ..layers.levels import Levels, map_to_tokens, tokens_to_map
from .interaction import (
    MRFP,
    NUM_LEVELS,
    CTIToC,
    CTIToV,
    FeatureInteraction,
    FFNBranch,
    Interaction,
)
from .pyramid import SpatialPyramid
from .vit import LAYER_NORM_EPS, PATCH_SIZE, ViTBranch

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
LARGEST_STRIDE = max(STRIDES.values())


class ViTCoMerNet(ViTBranch):
    """ViT-CoMer: a plain ViT and a convolutional pyramid that talk to each other.

    Images of any size: sides that do not divide by 32 are padded with zeros at the bottom and
    right, and every output is cropped to ``ceil(side / stride)``; the result is exactly that of
    padding the image outside. (In a Detectron2 model the images of a batch are padded together
    before they come here, so there is nothing left to pad.)

    Source: Sec. 3 of arXiv 2403.07392; where the paper and the released models differ, this is the
    released models' network (docs/architecture.md lists every difference).

    Args:
        in_chans: channels of the image.
        embed_dim: channels D of a ViT token, and of every output.
        depth: number of ViT blocks.
        num_heads: attention heads of the ViT.
        mlp_ratio: hidden channels of the ViT's MLP in units of ``embed_dim``.
        qkv_bias: whether q, k and v have a bias.
        drop_path_rate: stochastic depth: grows linearly to this rate over the ViT blocks, constant
            at this rate on the feed-forward branches of the interactions.
        use_abs_pos: whether there is a learned position table.
        use_rel_pos_bias: BEiT's attention, with a table of relative positions per block: of the
            block's window, or of the pretraining's grid where attention is global.
        layer_scale_init: initial layer scale of the ViT blocks; ``None`` for no layer scale.
        window_size: side of the attention windows in tokens, or one per block (0: global).
        window_block_indexes: with a single ``window_size``, the blocks that use it; the others are
            global. ``None``: every block that ``window_size`` gives a window, or all of them.
        pretrain_img_size: side of the pretraining images in pixels; the position table has
            (pretrain_img_size / 16)**2 rows.
        pretrain_use_cls_token: whether the position table has one more row in front, of the class
            token. It is kept as in Detectron2's ViT, but not used.
        num_prefix_tokens: class and register tokens that take part in the ViT's attention, each
            with its position already added. The released models have none.
        rope: rotary positions of ``"dinov3"`` or ``"eva02"``. This and the following are what
            pretraining families compute differently; docs/PRETRAINED.md has them by family.
        layer_norm_eps: epsilon of the ViT blocks' norms.
        pre_norm_eps: epsilon of a layer norm before the first block (CLIP, Uni-Perceiver), or
            ``None``.
        post_norm: whether the blocks' norms follow the sums (the first Uni-Perceiver).
        key_bias: whether k has a bias where q and v have one (not in BEiT, EVA-02 and DINOv3).
        attn_sub_norm: a layer norm before the attention's output projection (EVA-02-CLIP).
        mlp_type: ``"mlp"`` or ``"swiglu"`` (EVA-02, the larger DINOv2 and DINOv3).
        mlp_activation: of ``"mlp"``, by timm's name: ``"quick_gelu"`` for OpenAI's CLIP.
        mlp_sub_norm: a layer norm on the hidden channels of the MLP (EVA-02 B and L).
        stem_width: channels of the CNN branch at stride 4.
        interaction_indexes: (first, last) ViT block of every interaction, in order.
        deform_num_heads: heads of the deformable attentions.
        deform_num_points: sampling points per head and level.
        deform_ratio: value channels of the deformable attentions in units of ``embed_dim``.
        cffn_ratio: hidden channels of the ConvFFN in units of ``embed_dim``.
        mrfp_ratio: hidden channels of MRFP in units of ``embed_dim``.
        mrfp_kernel_sizes: kernel sizes of MRFP.
        use_mrfp: MRFP, or not; one bool, or one per interaction. So are the next three.
        use_cti_to_v: CNN to ViT, or not.
        use_cti_to_c: ViT to CNN, or not.
        cnn_feature_interaction: whether the CNN tokens attend to themselves in CTI to C.
        num_extra_cti: CTI-to-C blocks appended to the last interaction.
        gate_init: initial value of the gates of CTI to V.
        vit_features: the ViT features that are added to the outputs: ``"last"``, the final ones
            (detection); ``"stages"``, those after interaction 1, 2, 3, 4 to stride 4, 8, 16, 32
            (segmentation); ``"none"``.
        use_act_checkpoint: recompute the activations of blocks and interactions in the backward
            pass: less memory, more time.
        norm_layer: channels -> normalisation of the CNN branch, MRFP and the outputs.

    Raises:
        ValueError: for arguments that do not fit together, naming them.
    """

    def __init__(
        self,
        *,
        in_chans: int = 3,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        drop_path_rate: float = 0.0,
        use_abs_pos: bool = True,
        use_rel_pos_bias: bool = False,
        layer_scale_init: float | None = 1.0,
        window_size: int | Sequence[int] = 14,
        window_block_indexes: Sequence[int] | None = (0, 1, 3, 4, 6, 7, 9, 10),
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        num_prefix_tokens: int = 0,
        rope: Literal["dinov3", "eva02"] | None = None,
        layer_norm_eps: float = LAYER_NORM_EPS,
        pre_norm_eps: float | None = None,
        post_norm: bool = False,
        key_bias: bool = True,
        attn_sub_norm: bool = False,
        mlp_type: Literal["mlp", "swiglu"] = "mlp",
        mlp_activation: str = "gelu",
        mlp_sub_norm: bool = False,
        stem_width: int = 64,
        interaction_indexes: Sequence[Sequence[int]] = ((0, 2), (3, 5), (6, 8), (9, 11)),
        deform_num_heads: int = 12,
        deform_num_points: int = 4,
        deform_ratio: float = 0.5,
        cffn_ratio: float = 0.25,
        mrfp_ratio: float = 0.5,
        mrfp_kernel_sizes: Sequence[int] = (3, 5),
        use_mrfp: bool | Sequence[bool] = True,
        use_cti_to_v: bool | Sequence[bool] = True,
        use_cti_to_c: bool | Sequence[bool] = True,
        cnn_feature_interaction: bool | Sequence[bool] = True,
        num_extra_cti: int = 4,
        gate_init: float = 0.0,
        vit_features: Literal["last", "stages", "none"] = "last",
        use_act_checkpoint: bool = False,
        norm_layer: Callable[[int], nn.Module] = nn.BatchNorm2d,
    ) -> None:
        windows = window_per_block(depth, window_size, window_block_indexes)
        check_arguments(
            embed_dim, num_heads, pretrain_img_size, depth, interaction_indexes, vit_features
        )
        super().__init__(
            in_chans=in_chans,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            drop_path_rate=drop_path_rate,
            use_abs_pos=use_abs_pos,
            use_rel_pos_bias=use_rel_pos_bias,
            layer_scale_init=layer_scale_init,
            windows=windows,
            pretrain_img_size=pretrain_img_size,
            pretrain_use_cls_token=pretrain_use_cls_token,
            num_prefix_tokens=num_prefix_tokens,
            rope=rope,
            layer_norm_eps=layer_norm_eps,
            pre_norm_eps=pre_norm_eps,
            post_norm=post_norm,
            key_bias=key_bias,
            attn_sub_norm=attn_sub_norm,
            mlp_type=mlp_type,
            mlp_activation=mlp_activation,
            mlp_sub_norm=mlp_sub_norm,
        )
        num_interactions = len(interaction_indexes)
        self.embed_dim = embed_dim
        self.interaction_indexes = [tuple(pair) for pair in interaction_indexes]
        self.vit_features = vit_features

        self.pyramid = SpatialPyramid(in_chans, stem_width, embed_dim, norm_layer)
        self.level_embed = nn.Parameter(torch.zeros(NUM_LEVELS, embed_dim))

        def attention() -> MSDeformAttn:
            return MSDeformAttn(
                embed_dim, NUM_LEVELS, deform_num_heads, deform_num_points, deform_ratio
            )

        def ffn() -> FFNBranch:
            return FFNBranch(embed_dim, int(embed_dim * cffn_ratio), drop_path_rate)

        def mrfp() -> MRFP:
            return MRFP(embed_dim, int(embed_dim * mrfp_ratio), mrfp_kernel_sizes, norm_layer)

        def cti_to_c(attend: bool, extra: bool) -> CTIToC:
            return CTIToC(
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
        for i in range(num_interactions):
            on = {name: values[i] for name, values in switches.items()}
            attend = on["cnn_feature_interaction"]
            is_last = i == num_interactions - 1
            self.interactions.append(
                Interaction(
                    mrfp() if on["use_mrfp"] else None,
                    CTIToV(embed_dim, attention(), ffn(), gate_init)
                    if on["use_cti_to_v"]
                    else None,
                    cti_to_c(attend, extra=False) if on["use_cti_to_c"] else None,
                    [cti_to_c(attend, extra=True) for _ in range(num_extra_cti * is_last)],
                    use_act_checkpoint,
                )
            )

        self.upsample = nn.ConvTranspose2d(embed_dim, embed_dim, 2, stride=2)
        self.out_norms = nn.ModuleList(norm_layer(embed_dim) for _ in STRIDES)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialises from scratch, as the released training did."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
                nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, MSDeformAttn):
                module.reset_parameters()
        for table in (self.pos_embed, self.prefix_tokens):
            if table is not None:
                trunc_normal_(table, std=0.02)
        nn.init.normal_(self.level_embed)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Image -> feature maps of four strides.

        Args:
            image: (B, in_chans, h, w), normalised; any size of at least one pixel.

        Returns:
            ``{"res2", "res3", "res4", "res5"}``: (B, embed_dim, ceil(h/s), ceil(w/s)) for the
            strides s = 4, 8, 16, 32.

        Raises:
            ValueError: if ``image`` is not (B, in_chans, h, w) or is empty.
        """
        check_image(image, self.patch_embed.proj.in_channels)
        h, w = image.shape[-2:]
        if h % LARGEST_STRIDE or w % LARGEST_STRIDE:
            image = F.pad(image, (0, -w % LARGEST_STRIDE, 0, -h % LARGEST_STRIDE))
        levels = Levels.around(image.shape[-2] // PATCH_SIZE, image.shape[-1] // PATCH_SIZE)

        stem, c = self.cnn_tokens(image)
        x = self.vit_tokens(image)
        x_after, c = self.interact(x, c, levels)
        maps = self.output_maps(stem, c, x_after, levels)
        return {
            name: m[..., : math.ceil(h / stride), : math.ceil(w / stride)]
            for (name, stride), m in zip(STRIDES.items(), maps, strict=True)
        }

    def cnn_tokens(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, C, h, w) -> stride-4 map (B, D, h/4, w/4), CNN tokens (B, S, D)."""
        # Channels-last, so that a token's channels lie side by side and maps and tokens are views
        # of each other.
        stem, *maps = self.pyramid(image.contiguous(memory_format=torch.channels_last))
        tokens = [map_to_tokens(m) + e for m, e in zip(maps, self.level_embed, strict=True)]
        return stem, torch.cat(tokens, dim=1)

    def interact(self, x: Tensor, c: Tensor, levels: Levels) -> tuple[list[Tensor], Tensor]:
        """Runs the interactions and the ViT blocks inside them.

        Args:
            x: (B, P + H*W, D) ViT tokens, the prefix tokens first.
            c: (B, S, D) CNN tokens.
            levels: of the CNN tokens.

        Returns:
            The ViT tokens (B, H*W, D) after every interaction, and the final CNN tokens.
        """
        geometry = levels.geometry(x.device, x.dtype)
        height, width = levels.spatial_shapes[1]
        rope = self.rope_of(height, width)
        x_after = []
        for interaction, (first, last) in zip(
            self.interactions, self.interaction_indexes, strict=True
        ):
            x, c = interaction(x, c, self.blocks[first : last + 1], levels, geometry, rope)
            x_after.append(x[:, -height * width :])
        return x_after, c

    def output_maps(
        self, stem: Tensor, c: Tensor, x_after: list[Tensor], levels: Levels
    ) -> list[Tensor]:
        """Puts both branches together.

        Args:
            stem: (B, D, h/4, w/4).
            c: (B, S, D) final CNN tokens.
            x_after: (B, H*W, D) ViT tokens after every interaction.
            levels: of the CNN tokens.

        Returns:
            (B, D, h/s, w/s) for s = 4, 8, 16, 32.
        """
        fine, middle, coarse = levels.maps(c)
        maps = [self.upsample(fine) + stem, fine, middle, coarse]
        if self.vit_features != "none":
            x_for_map = x_after if self.vit_features == "stages" else x_after[-1:] * len(maps)
            vit_maps = [tokens_to_map(x, *levels.spatial_shapes[1]) for x in x_for_map]
            maps = [m + resize_bilinear(x, m) for m, x in zip(maps, vit_maps, strict=True)]
        return [norm(m) for norm, m in zip(self.out_norms, maps, strict=True)]


def resize_bilinear(x: Tensor, like: Tensor) -> Tensor:
    """Resizes a map (B, D, H, W) to the size of another, bilinear, ``align_corners=False``."""
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


def window_per_block(
    depth: int, window_size: int | Sequence[int], window_block_indexes: Sequence[int] | None
) -> list[int]:
    """Window side of every ViT block, 0 for global attention."""
    if isinstance(window_size, int):
        chosen = range(depth) if window_block_indexes is None else window_block_indexes
        outside = [i for i in chosen if not 0 <= i < depth]
        if outside:
            raise ValueError(
                f"window_block_indexes {outside} are not blocks of a depth {depth} ViT"
            )
        return [window_size if i in chosen else 0 for i in range(depth)]
    if len(window_size) != depth:
        raise ValueError(f"window_size names {len(window_size)} blocks, but depth is {depth}")
    return list(window_size)


def per_interaction(name: str, value: bool | Sequence[bool], num_interactions: int) -> list[bool]:
    """One switch per interaction, from one bool or from a sequence of them."""
    if isinstance(value, bool):
        return [value] * num_interactions
    if len(value) != num_interactions:
        raise ValueError(f"{name} has {len(value)} values for {num_interactions} interactions")
    return list(value)


def check_arguments(
    embed_dim: int,
    num_heads: int,
    pretrain_img_size: int,
    depth: int,
    interaction_indexes: Sequence[Sequence[int]],
    vit_features: str,
) -> None:
    """Raises ValueError for constructor arguments that do not fit together."""
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim {embed_dim} must be a multiple of num_heads {num_heads}")
    if pretrain_img_size % PATCH_SIZE:
        raise ValueError(
            f"pretrain_img_size {pretrain_img_size} must be a multiple of {PATCH_SIZE}, "
            "the patch size: give the side of the position table times 16"
        )
    blocks = [i for first, last in interaction_indexes for i in range(first, last + 1)]
    if blocks != list(range(depth)):
        raise ValueError(
            f"interaction_indexes {[tuple(p) for p in interaction_indexes]} must cover the blocks "
            f"0..{depth - 1} once each and in order (depth is {depth})"
        )
    if vit_features not in ("last", "stages", "none"):
        raise ValueError(f"vit_features must be 'last', 'stages' or 'none', got {vit_features!r}")
    if vit_features == "stages" and len(interaction_indexes) != len(STRIDES):
        raise ValueError(
            f"vit_features='stages' adds one interaction to each of {len(STRIDES)} outputs, got "
            f"{len(interaction_indexes)} interactions"
        )


def check_image(image: Tensor, in_chans: int) -> None:
    """Raises ValueError if an image batch is not (B, in_chans, h, w) with h, w > 0."""
    if image.ndim != 4 or image.shape[1] != in_chans or 0 in image.shape[-2:]:
        raise ValueError(
            f"image must have shape (B, {in_chans}, h, w) with h, w > 0, got {tuple(image.shape)}"
        )
