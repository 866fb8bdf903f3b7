"""The ViT: image -> patch tokens -> blocks.

By default this is the plain ViT of the released models. The other arguments are what pretraining
families compute differently (docs/PRETRAINED.md says which family needs which).
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from timm.layers import (
    Mlp,
    SwiGLU,
    create_rope_embed,
    get_act_layer,
    trunc_normal_,
)
from torch import Tensor, nn

from ..layers.drop_path import DropPath
from ..layers.levels import Levels, map_to_tokens, tokens_to_map, without_prefix
from ..layers.linear import with_own_linears
from ..layers.narrow import narrowed
from ..layers.norm import LayerNorm, LayerScale
from ..layers.positions import CentredRotaryPositions, ResizedTables
from .init import draw_layers
from .trunk import BlockRanges, Call, Stage, check_cover
from .vit_attention import Attention, QKVBias, RelativePositionAttention

# The CNN branch meets the ViT at stride 16; pretrained kernels of another size are resampled to it.
PATCH_SIZE = 16
LAYER_NORM_EPS = 1e-6
LEVEL = 1  # stride 16, of the CNN tokens' three levels
NUM_STAGES = 4
# Rotary positions by family, in timm's terms (DINOv3's are our own); none of them has parameters.
ROPE: dict[str, dict[str, Any]] = {
    "dinov3": {"rotate_half": True},
    "eva02": {
        "rope_type": "cat",
        "temperature": 10000.0,
        "in_pixels": False,
        "ref_feat_shape": (16, 16),  # positions are scaled to the grid of the pretraining
    },
    "pe": {  # the class token is at (0, 0), the first patch at (1, 1); columns come first
        "rope_type": "cat",
        "temperature": 10000.0,
        "in_pixels": False,
        "grid_offset": 1.0,
        "grid_indexing": "xy",
    },
    "rope-vit": {
        "rope_type": "cat",
        "temperature": 100.0,
        "in_pixels": False,
        "grid_indexing": "xy",
    },
}


class PatchEmbed(nn.Module):
    """16x16 patches -> tokens.

    Args:
        in_chans: channels of the image.
        embed_dim: channels D of a token.
    """

    def __init__(self, in_chans: int, embed_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_chans, embed_dim, PATCH_SIZE, stride=PATCH_SIZE)

    def forward(self, image: Tensor) -> Tensor:
        """Image (B, C, h, w), sides divisible by 16 -> map (B, D, h/16, w/16)."""
        return self.proj(image)


class Block(nn.Module):
    """A pre-norm transformer block with layer scale.

    Args:
        dim: channels D of a token.
        attn: the attention.
        mlp: the feed-forward network.
        drop_path: probability of dropping a branch, per sample.
        layer_scale_init: initial value of the layer scale; ``None`` for no layer scale.
        norm_eps: epsilon of the layer norms.
    """

    def __init__(
        self,
        dim: int,
        attn: Attention,
        mlp: nn.Module,
        *,
        drop_path: float,
        layer_scale_init: float | None,
        norm_eps: float = LAYER_NORM_EPS,
    ) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.ls1 = layer_scale(dim, layer_scale_init)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = LayerNorm(dim, eps=norm_eps)
        self.mlp = mlp
        self.ls2 = layer_scale(dim, layer_scale_init)
        self.drop_path2 = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        height: int,
        width: int,
        rope: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, P + height*width, D) -> tokens of the same shape.

        ``rope`` and ``allowed`` are those of :class:`~comer_d2.network.vit_attention.Attention`.
        """
        attended = self.attn(self.norm1(x), height, width, rope, allowed)
        x = x + self.drop_path1(self.ls1(attended))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class PostNormBlock(Block):
    """A block whose norms follow the sums, as BERT's do: that of the first Uni-Perceiver."""

    def forward(
        self,
        x: Tensor,
        height: int,
        width: int,
        rope: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, P + height*width, D) -> tokens of the same shape."""
        x = self.norm1(x + self.drop_path1(self.ls1(self.attn(x, height, width, rope, allowed))))
        return self.norm2(x + self.drop_path2(self.ls2(self.mlp(x))))


class ViT(nn.Module):
    """A plain ViT: patch embedding, positions, blocks; no final norm.

    It is given to :class:`~comer_d2.network.ViTCoMerNet`, which runs its blocks stage by stage, and
    stands alone as the baseline. Parameters are ``patch_embed.*``, ``pos_embed`` and ``blocks.i.*``,
    the names that layer-wise learning rates go by.

    By default it is the ViT of the released models. From ``rope`` on, the arguments are what
    pretraining families compute differently; docs/PRETRAINED.md has them by family.

    Args:
        in_chans: channels of the image.
        embed_dim: channels D of a token.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the MLP in units of ``embed_dim``.
        drop_path_rate: stochastic depth: grows linearly to this rate over the blocks.
        window_size: side of the attention windows in tokens, or one per block (0: global).
        window_block_indexes: with a single ``window_size``, the blocks that use it; the others are
            global. ``None``: all blocks.
        pretrain_img_size: side of the pretraining images in pixels; the position table has
            (pretrain_img_size / 16)**2 rows.
        pretrain_use_cls_token: whether the position table has one more row in front, of the class
            token. It is kept as in Detectron2's ViT, but not used.
        num_prefix_tokens: class and register tokens that take part in the attention, each with its
            position already added. The released models have none.
        use_abs_pos: whether there is a learned position table.
        rope: rotary positions of ``"dinov3"``, ``"eva02"``, ``"pe"`` (Perception Encoder) or
            ``"rope-vit"``.
        use_rel_pos_bias: BEiT's attention, with a table of relative positions per block: of the
            block's window, or of the pretraining's grid where attention is global.
        qkv_bias: which of q, k and v have a bias: ``"qkv"``, ``"qv"`` (BEiT, EVA-02 and some
            DINOv3) or ``"none"``.
        layer_scale_init: initial layer scale of the blocks; ``None`` for no layer scale.
        layer_norm_eps: epsilon of the blocks' norms.
        pre_norm_eps: epsilon of a layer norm before the first block (CLIP, Uni-Perceiver), or
            ``None``.
        post_norm: whether the blocks' norms follow the sums (the first Uni-Perceiver).
        sub_norms: layer norms on what enters the last linear layer of ``"attn"`` (EVA-02-CLIP) and
            ``"mlp"`` (EVA-02 B and L).
        mlp: the MLP's activation by timm's name (``"quick_gelu"`` for OpenAI's CLIP), or
            ``"swiglu"`` for one with a SiLU gate (EVA-02, the larger DINOv2 and DINOv3).
        freeze_at: blocks, from the first on, that stay as they are, with the embedding before them;
            0: nothing is frozen, ``depth``: all of it. What is frozen gets no gradient, and stays in
            evaluation (no drop path) in training. With CTI to V off, the frozen part of a ViT-CoMer
            keeps no activations either.
        frozen_dtype: ``"bfloat16"`` keeps the linear layers of frozen blocks, which are nearly all of
            their weights, in half the memory, and multiplies in it; ``"float32"``.
        draw_weights: draw the initial weights here. ``False`` leaves them to the network that the
            ViT is given to, which draws them after making its own layers: for runs that are to
            repeat, at a seed, those of version 0.1.

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
        drop_path_rate: float = 0.0,
        window_size: int | Sequence[int] = 14,
        window_block_indexes: Sequence[int] | None = (0, 1, 3, 4, 6, 7, 9, 10),
        pretrain_img_size: int = 224,
        pretrain_use_cls_token: bool = True,
        num_prefix_tokens: int = 0,
        use_abs_pos: bool = True,
        rope: Literal["dinov3", "eva02", "pe", "rope-vit"] | None = None,
        use_rel_pos_bias: bool = False,
        qkv_bias: QKVBias = "qkv",
        layer_scale_init: float | None = 1.0,
        layer_norm_eps: float = LAYER_NORM_EPS,
        pre_norm_eps: float | None = None,
        post_norm: bool = False,
        sub_norms: Sequence[str] = (),
        mlp: str = "gelu",
        freeze_at: int = 0,
        frozen_dtype: Literal["float32", "bfloat16"] = "float32",
        draw_weights: bool = True,
    ) -> None:
        super().__init__()
        windows = window_per_block(depth, window_size, window_block_indexes)
        check_arguments(embed_dim, num_heads, pretrain_img_size, qkv_bias, sub_norms)
        if rope is not None and rope not in ROPE:
            raise ValueError(f"rope must be one of {sorted(ROPE)} or None, got {rope!r}")
        if frozen_dtype not in ("float32", "bfloat16"):
            raise ValueError(f"frozen_dtype must be 'float32' or 'bfloat16', got {frozen_dtype!r}")
        if type(freeze_at) is not int or not 0 <= freeze_at <= depth:  # True is no number of blocks
            raise ValueError(
                f"freeze_at must be 0 to {depth}, the depth of the ViT, got {freeze_at}"
            )
        if frozen_dtype != "float32" and freeze_at == 0:
            raise ValueError(
                f"frozen_dtype={frozen_dtype!r} is for frozen blocks, and freeze_at is 0: freeze some, up "
                f"to {depth}, or leave frozen_dtype='float32'"
            )
        if use_rel_pos_bias and (rope is not None or num_prefix_tokens > 1):
            raise ValueError(
                "use_rel_pos_bias goes with at most one prefix token, the class token, and without "
                f"rope; got num_prefix_tokens {num_prefix_tokens}, rope {rope!r}"
            )
        self.in_chans = in_chans
        self.embed_dim = embed_dim
        self.drop_path_rate = drop_path_rate
        # What the shapes of the parameters do not show: a pretraining must fit these too.
        self.computation = {
            "rope": rope,
            "layer_norm_eps": layer_norm_eps,
            "pre_norm_eps": pre_norm_eps,
            "post_norm": post_norm,
            "mlp": mlp,
            "use_rel_pos_bias": use_rel_pos_bias,
            "num_heads": num_heads,
        }
        grid_size = pretrain_img_size // PATCH_SIZE
        self.patch_embed = PatchEmbed(in_chans, embed_dim)
        rows = grid_size**2 + pretrain_use_cls_token
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, embed_dim)) if use_abs_pos else None
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self.resized_pos_embed = ResizedTables()
        self.prefix_tokens = None
        if num_prefix_tokens:
            self.prefix_tokens = nn.Parameter(torch.zeros(1, num_prefix_tokens, embed_dim))
        self.norm_pre: nn.Module = nn.Identity()
        if pre_norm_eps is not None:
            self.norm_pre = LayerNorm(embed_dim, eps=pre_norm_eps)
        self.rope: Any = build_rope(rope, embed_dim, num_heads)

        def attention(window: int) -> Attention:
            sub_norm_eps = layer_norm_eps if "attn" in sub_norms else None
            if use_rel_pos_bias:
                return RelativePositionAttention(
                    embed_dim,
                    num_heads,
                    qkv_bias,
                    window,
                    grid_size=grid_size,
                    class_token=num_prefix_tokens == 1,
                    sub_norm_eps=sub_norm_eps,
                )
            rotate_half = rope is not None and ROPE[rope].get("rotate_half", False)
            return Attention(
                embed_dim,
                num_heads,
                qkv_bias,
                window,
                sub_norm_eps=sub_norm_eps,
                rotate_half=rotate_half,
            )

        hidden_dim = int(embed_dim * mlp_ratio)
        mlp_norm_eps = layer_norm_eps if "mlp" in sub_norms else None
        block_type = PostNormBlock if post_norm else Block
        self.blocks: Any = nn.ModuleList()
        for i in range(depth):
            block = block_type(
                embed_dim,
                attention(windows[i]),
                build_mlp(embed_dim, hidden_dim, mlp, mlp_norm_eps),
                drop_path=drop_path_rate * i / max(depth - 1, 1),
                layer_scale_init=layer_scale_init,
                norm_eps=layer_norm_eps,
            )
            if i < freeze_at and frozen_dtype == "bfloat16":
                keep_in_bfloat16(block)  # now: a large ViT as a whole may not fit in float32
            self.blocks.append(block)
        self.freeze_at = freeze_at
        for part in self.frozen_parts():
            part.requires_grad_(False)
        self.is_drawn = draw_weights
        if draw_weights:
            self.draw_layers()
            self.draw_tables()

    def frozen_parts(self) -> list[nn.Module | nn.Parameter]:
        """What ``freeze_at`` freezes: the embedding and the first blocks, or nothing."""
        if not self.freeze_at:
            return []
        tables = [t for t in (self.pos_embed, self.prefix_tokens) if t is not None]
        return [self.patch_embed, self.norm_pre, *tables, *self.blocks[: self.freeze_at]]

    def train(self, mode: bool = True) -> "ViT":
        """Sets the mode of all modules but the frozen ones, which stay in evaluation."""
        super().train(mode)
        self.resized_pos_embed.forget()
        for part in self.frozen_parts():
            if isinstance(part, nn.Module):
                part.eval()
        return self

    def draw_layers(self) -> None:
        """Draws linear layers and the patch embedding, as the released training did."""
        draw_layers(self)

    def draw_tables(self) -> None:
        """Draws positions and prefix tokens, as the released training did."""
        for table in (self.pos_embed, self.prefix_tokens):
            if table is not None:
                trunc_normal_(table, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Image -> map of the last block.

        Args:
            image: (B, in_chans, h, w), normalised; sides divisible by 16.

        Returns:
            (B, embed_dim, h/16, w/16).

        Raises:
            ValueError: for sides that do not divide by 16.
        """
        height, width = grid_of(image)
        rope = self.rope_of(height, width)
        with narrowed(self, device=image.device.type):
            x = self.tokens(image)
            for block in self.blocks:
                x = block(x, height, width, rope)
        return tokens_to_map(x[:, -height * width :], height, width)

    def tokens(self, image: Tensor) -> Tensor:
        """Image (B, C, h, w) -> tokens with their positions, (B, P + h/16 * w/16, D).

        The P prefix tokens, of which there are none by default, come first.
        """
        patches = self.patch_embed(image)
        x = map_to_tokens(patches)
        if self.pos_embed is not None:
            first, size = int(self.pretrain_use_cls_token), patches.shape[-2:]
            x = x + self.resized_pos_embed.of(self.pos_embed, first, *size, keep=not self.training)
        if self.prefix_tokens is not None:
            x = torch.cat([self.prefix_tokens.to(x.dtype).expand(x.shape[0], -1, -1), x], dim=1)
        return self.norm_pre(x)

    def rope_of(self, height: int, width: int) -> Tensor | None:
        """Rotary positions (height*width, 2*d) of a map, or ``None``; shared by all blocks."""
        return None if self.rope is None else self.rope.get_embed([height, width])

    def stages(self, interaction_indexes: BlockRanges | None) -> list[Stage]:
        """The stages of some (first, last) blocks each; of ``None``, four of the same length.

        Raises:
            ValueError: if they do not cover the blocks, or these cannot be shared out.
        """
        depth = len(self.blocks)
        if interaction_indexes is None:
            if depth % NUM_STAGES:
                raise ValueError(
                    f"{depth} blocks cannot be shared out to {NUM_STAGES} interactions: set "
                    "interaction_indexes"
                )
            starts = range(0, depth, depth // NUM_STAGES)
            interaction_indexes = [(i, i + depth // NUM_STAGES - 1) for i in starts]
        check_cover(interaction_indexes, range(depth), f"depth is {depth}")
        return [Stage(first, last, self.embed_dim, LEVEL) for first, last in interaction_indexes]

    def map_dims(self, features: str, num_stages: int) -> list[int]:
        """Channels of the maps for the outputs: ``embed_dim``.

        Raises:
            ValueError: for ``"stages"``, if there are not four.
        """
        if features == "stages" and num_stages != NUM_STAGES:
            raise ValueError(
                f"vit_features='stages' adds one interaction to each of {NUM_STAGES} outputs, got "
                f"{num_stages} interactions"
            )
        return [] if features == "none" else [self.embed_dim] * NUM_STAGES

    def start(self, image: Tensor, call: Call) -> Tensor:
        """As :meth:`tokens`."""
        return self.tokens(image)

    def enter(self, x: Tensor, stage: Stage, levels: Levels) -> Tensor:
        """Nothing: all stages have the same map."""
        return x

    def blocks_of(self, stage: Stage) -> Sequence[nn.Module]:
        """The blocks of a stage."""
        return self.blocks[stage.first : stage.last + 1]

    def run_blocks(
        self, x: Tensor, call: Call, *, stage: Stage, size: tuple[int, int], rope: Tensor | None
    ) -> Tensor:
        """Tokens (B, P + H*W, D), the map of ``size`` (H, W), through a stage's blocks."""
        for block in self.blocks_of(stage):
            x = call(block, x, *size, rope)
        return x

    def maps(
        self,
        features: str,
        x_first: Tensor,
        x_after: Sequence[tuple[Stage, Tensor]],
        levels: Levels,
    ) -> list[Tensor]:
        """The final map (B, D, H, W) four times (``"last"``), or that of every stage (``"stages"``)."""
        height, width = levels.spatial_shapes[LEVEL]
        wanted = x_after if features == "stages" else [x_after[-1]] * NUM_STAGES
        return [tokens_to_map(without_prefix(x, height * width), height, width) for _, x in wanted]


def grid_of(image: Tensor) -> tuple[int, int]:
    """Height and width in patches of an image (B, C, h, w).

    Raises:
        ValueError: for sides that do not divide by 16.
    """
    if image.shape[-2] % PATCH_SIZE or image.shape[-1] % PATCH_SIZE:
        raise ValueError(
            f"the sides of images must divide by {PATCH_SIZE}, the patch size: pad them; got "
            f"{tuple(image.shape)}"
        )
    return image.shape[-2] // PATCH_SIZE, image.shape[-1] // PATCH_SIZE


def build_mlp(dim: int, hidden_dim: int, kind: str, sub_norm_eps: float | None) -> nn.Module:
    """The feed-forward network of a block.

    Args:
        dim: channels D of a token.
        hidden_dim: hidden channels.
        kind: ``"swiglu"``, or the activation of two linear layers, by timm's name.
        sub_norm_eps: epsilon of a layer norm on the hidden channels; ``None`` for no norm.

    Raises:
        ValueError: timm has no activation of this name.
    """
    norm_layer = None if sub_norm_eps is None else partial(LayerNorm, eps=sub_norm_eps)
    if kind == "swiglu":
        return with_own_linears(SwiGLU(dim, hidden_dim, norm_layer=norm_layer))
    try:
        activation = get_act_layer(kind)
    except KeyError as e:
        raise ValueError(
            f"mlp must be 'swiglu' or a name of timm's activations, got {kind!r}"
        ) from e
    return with_own_linears(Mlp(dim, hidden_dim, act_layer=activation, norm_layer=norm_layer))


def keep_in_bfloat16(block: nn.Module) -> None:
    """Gives a block's linear layers weights in bfloat16; see :func:`~comer_d2.layers.linear.linear`."""
    for module in block.modules():
        if isinstance(module, nn.Linear):
            module.to(torch.bfloat16)


def build_rope(name: str | None, dim: int, num_heads: int) -> nn.Module | None:
    """Rotary positions of a family; any map size, no state.

    Positions are those on the whole map, in windows too: a window sees the same differences of
    position as it would in global attention.
    """
    if name is None:
        return None
    if name == "dinov3":
        return CentredRotaryPositions(dim // num_heads)
    return create_rope_embed(dim=dim, num_heads=num_heads, feat_shape=None, **ROPE[name])


def layer_scale(dim: int, init: float | None) -> nn.Module:
    """A learned factor per channel, or nothing."""
    return nn.Identity() if init is None else LayerScale(dim, init)


def window_per_block(
    depth: int, window_size: int | Sequence[int], window_block_indexes: Sequence[int] | None
) -> list[int]:
    """Window side of every block, 0 for global attention; arguments as of :class:`ViT`.

    Raises:
        ValueError: for blocks that the ViT does not have.
    """
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


def check_arguments(
    embed_dim: int,
    num_heads: int,
    pretrain_img_size: int,
    qkv_bias: str,
    sub_norms: Sequence[str],
) -> None:
    """Raises ValueError for constructor arguments that do not fit together."""
    if embed_dim % num_heads:
        raise ValueError(f"embed_dim {embed_dim} must be a multiple of num_heads {num_heads}")
    if pretrain_img_size % PATCH_SIZE:
        raise ValueError(
            f"pretrain_img_size {pretrain_img_size} must be a multiple of {PATCH_SIZE}, "
            "the patch size: give the side of the position table times 16"
        )
    if qkv_bias not in get_args(QKVBias):
        raise ValueError(f"qkv_bias must be one of {get_args(QKVBias)}, got {qkv_bias!r}")
    unknown = sorted(set(sub_norms) - {"attn", "mlp"})
    if unknown:
        raise ValueError(f"sub_norms must be some of 'attn' and 'mlp', got {unknown}")
