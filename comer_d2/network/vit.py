"""The ViT branch: image -> patch tokens -> blocks.

By default this is the plain ViT of the released models. The other arguments are what pretraining
families compute differently (docs/PRETRAINED.md says which family needs which).
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp, SwiGLU, create_rope_embed, get_act_layer
from torch import Tensor, nn

from ..layers.levels import map_to_tokens
from ..layers.linear import with_own_linears
from .vit_attention import Attention, RelativePositionAttention

# The CNN branch meets the ViT at stride 16; pretrained kernels of another size are resampled to it.
PATCH_SIZE = 16
LAYER_NORM_EPS = 1e-6
# Rotary positions by family, in timm's terms; none of them has parameters.
ROPE = {
    "dinov3": {"rope_type": "dinov3", "temperature": 100.0, "rotate_half": True},
    "eva02": {
        "rope_type": "cat",
        "temperature": 10000.0,
        "in_pixels": False,
        "ref_feat_shape": (16, 16),  # positions are scaled to the grid of the pretraining
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
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = attn
        self.ls1 = layer_scale(dim, layer_scale_init)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = mlp
        self.ls2 = layer_scale(dim, layer_scale_init)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, height: int, width: int, rope: Tensor | None = None) -> Tensor:
        """Tokens (B, P + height*width, D) -> tokens of the same shape."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), height, width, rope)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


class PostNormBlock(Block):
    """A block whose norms follow the sums, as BERT's do: that of the first Uni-Perceiver."""

    def forward(self, x: Tensor, height: int, width: int, rope: Tensor | None = None) -> Tensor:
        """Tokens (B, P + height*width, D) -> tokens of the same shape."""
        x = self.norm1(x + self.drop_path1(self.ls1(self.attn(x, height, width, rope))))
        return self.norm2(x + self.drop_path2(self.ls2(self.mlp(x))))


def build_mlp(
    dim: int,
    hidden_dim: int,
    kind: Literal["mlp", "swiglu"],
    activation: str,
    sub_norm_eps: float | None,
) -> nn.Module:
    """The feed-forward network of a block.

    Args:
        dim: channels D of a token.
        hidden_dim: hidden channels.
        kind: ``"mlp"``, two linear layers, or ``"swiglu"``, with a SiLU gate.
        activation: of ``"mlp"``, by timm's name.
        sub_norm_eps: epsilon of a layer norm on the hidden channels; ``None`` for no norm.
    """
    norm_layer = None if sub_norm_eps is None else partial(nn.LayerNorm, eps=sub_norm_eps)
    if kind == "swiglu":
        return with_own_linears(SwiGLU(dim, hidden_dim, norm_layer=norm_layer))
    if kind != "mlp":
        raise ValueError(f"mlp_type must be 'mlp' or 'swiglu', got {kind!r}")
    mlp = Mlp(dim, hidden_dim, act_layer=get_act_layer(activation), norm_layer=norm_layer)
    return with_own_linears(mlp)


def build_attention(
    dim: int,
    num_heads: int,
    *,
    qkv_bias: bool,
    key_bias: bool,
    window_size: int,
    grid_size: int,
    num_prefix_tokens: int,
    use_rel_pos_bias: bool,
    sub_norm_eps: float | None,
    rope: str | None,
) -> Attention:
    """The attention of a block; the arguments are those of the two classes."""
    if use_rel_pos_bias:
        return RelativePositionAttention(
            dim,
            num_heads,
            qkv_bias,
            window_size,
            grid_size=grid_size,
            class_token=num_prefix_tokens == 1,
            sub_norm_eps=sub_norm_eps,
        )
    return Attention(
        dim,
        num_heads,
        qkv_bias,
        window_size,
        key_bias=key_bias,
        sub_norm_eps=sub_norm_eps,
        rotate_half=rope is not None and ROPE[rope].get("rotate_half", False),
    )


def build_rope(name: str | None, dim: int, num_heads: int) -> nn.Module | None:
    """timm's rotary positions of a family; any map size, no state.

    Positions are those on the whole map, in windows too: a window sees the same differences of
    position as it would in global attention.
    """
    if name is None:
        return None
    return create_rope_embed(dim=dim, num_heads=num_heads, feat_shape=None, **ROPE[name])


class ViTBranch(nn.Module):
    """The ViT inside ViT-CoMer: patch embedding, positions, blocks; no final norm.

    A base class and not a part, so that its parameters are ``patch_embed.*``, ``pos_embed`` and
    ``blocks.i.*``, the names that layer-wise learning rates go by.

    Args: see :class:`~comer_d2.network.ViTCoMerNet`; ``windows`` has one side per block.
    """

    def __init__(
        self,
        *,
        in_chans: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        qkv_bias: bool,
        drop_path_rate: float,
        use_abs_pos: bool,
        use_rel_pos_bias: bool,
        layer_scale_init: float | None,
        windows: Sequence[int],
        pretrain_img_size: int,
        pretrain_use_cls_token: bool,
        num_prefix_tokens: int,
        rope: str | None,
        layer_norm_eps: float,
        pre_norm_eps: float | None,
        post_norm: bool,
        key_bias: bool,
        attn_sub_norm: bool,
        mlp_type: Literal["mlp", "swiglu"],
        mlp_activation: str,
        mlp_sub_norm: bool,
    ) -> None:
        super().__init__()
        if rope is not None and rope not in ROPE:
            raise ValueError(f"rope must be one of {sorted(ROPE)} or None, got {rope!r}")
        if use_rel_pos_bias and (rope is not None or num_prefix_tokens > 1):
            raise ValueError(
                "use_rel_pos_bias goes with at most one prefix token, the class token, and without "
                f"rope; got num_prefix_tokens {num_prefix_tokens}, rope {rope!r}"
            )
        # What the shapes of the parameters do not show: a pretraining must fit these too.
        self.computation = {
            "rope": rope,
            "layer_norm_eps": layer_norm_eps,
            "pre_norm_eps": pre_norm_eps,
            "post_norm": post_norm,
            "mlp_type": mlp_type,
            "mlp_activation": mlp_activation if mlp_type == "mlp" else "silu",
            "use_rel_pos_bias": use_rel_pos_bias,
            "num_heads": num_heads,
        }
        grid_size = pretrain_img_size // PATCH_SIZE
        self.patch_embed = PatchEmbed(in_chans, embed_dim)
        rows = grid_size**2 + pretrain_use_cls_token
        self.pos_embed = nn.Parameter(torch.zeros(1, rows, embed_dim)) if use_abs_pos else None
        self.pretrain_use_cls_token = pretrain_use_cls_token
        self.prefix_tokens = None
        if num_prefix_tokens:
            self.prefix_tokens = nn.Parameter(torch.zeros(1, num_prefix_tokens, embed_dim))
        self.norm_pre = nn.Identity()
        if pre_norm_eps is not None:
            self.norm_pre = nn.LayerNorm(embed_dim, eps=pre_norm_eps)
        self.rope = build_rope(rope, embed_dim, num_heads)
        hidden_dim = int(embed_dim * mlp_ratio)
        block = PostNormBlock if post_norm else Block
        self.blocks = nn.ModuleList(
            block(
                embed_dim,
                build_attention(
                    embed_dim,
                    num_heads,
                    qkv_bias=qkv_bias,
                    key_bias=key_bias,
                    window_size=windows[i],
                    grid_size=grid_size,
                    num_prefix_tokens=num_prefix_tokens,
                    use_rel_pos_bias=use_rel_pos_bias,
                    sub_norm_eps=layer_norm_eps if attn_sub_norm else None,
                    rope=rope,
                ),
                build_mlp(
                    embed_dim,
                    hidden_dim,
                    mlp_type,
                    mlp_activation,
                    layer_norm_eps if mlp_sub_norm else None,
                ),
                drop_path=drop_path_rate * i / max(depth - 1, 1),
                layer_scale_init=layer_scale_init,
                norm_eps=layer_norm_eps,
            )
            for i in range(depth)
        )

    def vit_tokens(self, image: Tensor) -> Tensor:
        """Image (B, C, h, w) -> tokens with their positions, (B, P + h/16 * w/16, D).

        The P prefix tokens, of which there are none by default, come first.
        """
        patches = self.patch_embed(image)
        x = map_to_tokens(patches)
        if self.pos_embed is not None:
            table = self.pos_embed[:, 1:] if self.pretrain_use_cls_token else self.pos_embed
            x = x + resize_position_table(table, *patches.shape[-2:])
        if self.prefix_tokens is not None:
            x = torch.cat([self.prefix_tokens.to(x.dtype).expand(len(x), -1, -1), x], dim=1)
        return self.norm_pre(x)

    def rope_of(self, height: int, width: int) -> Tensor | None:
        """Rotary positions (height*width, 2*d) of a map, or ``None``; shared by all blocks."""
        return None if self.rope is None else self.rope.get_embed([height, width])


def layer_scale(dim: int, init: float | None) -> nn.Module:
    return nn.Identity() if init is None else LayerScale(dim, init_values=init)


def resize_position_table(table: Tensor, height: int, width: int) -> Tensor:
    """Resizes a square position table to a grid.

    Bicubic, ``align_corners=False``, no antialiasing: the resampling of the released weights.

    Args:
        table: (1, G*G, D), rows of a G x G grid.
        height: rows of the new grid.
        width: columns of the new grid.

    Returns:
        (1, height*width, D).
    """
    grid = round(table.shape[1] ** 0.5)
    if (grid, grid) == (height, width):
        return table
    table = table.unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    table = F.interpolate(table, size=(height, width), mode="bicubic", align_corners=False)
    return map_to_tokens(table)
