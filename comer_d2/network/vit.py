"""The ViT branch: image -> patch tokens -> blocks."""

import torch
import torch.nn.functional as F
from timm.layers import DropPath, LayerScale, Mlp, trunc_normal_
from torch import Tensor, nn

from .levels import map_to_tokens

# The CNN branch meets the ViT at stride 16; pretrained kernels of another size are resampled to it.
PATCH_SIZE = 16
LAYER_NORM_EPS = 1e-6


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


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, or within windows.

    Windows do not overlap. Where they do not divide the map, q, k and v are padded with zeros at
    the bottom and right, without a mask: a padded key takes part in the softmax with logit 0. This
    is what the released weights were trained with. (Detectron2's own ViT pads before the qkv
    projection, so that its padded keys carry the projection's bias.)

    Args:
        dim: channels D of a token.
        num_heads: attention heads; must divide ``dim``.
        qkv_bias: whether q, k and v have a bias.
        window_size: side of a window in tokens; 0 attends over the whole map.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Tokens (B, height*width, D) -> tokens of the same shape."""
        qkv = self.qkv(x)
        if self.window_size:
            qkv = window_partition(qkv, height, width, self.window_size)
        x = attend(qkv, self.num_heads)
        if self.window_size:
            x = window_reverse(x, height, width, self.window_size)
        return self.proj(x)


class RelativePositionAttention(nn.Module):
    """Windowed self-attention with BEiT's relative position bias.

    As BEiT does, tokens are padded *before* the projection, so that a padded token has k = 0,
    v = v_bias and takes part in the softmax with its relative bias. The key has no bias.

    Source: BEiT, arXiv 2106.08254, Sec. 2.2; windows as in its detection transfers.

    Args:
        dim: channels D of a token.
        num_heads: attention heads; must divide ``dim``.
        qkv_bias: whether q and v have a bias.
        window_size: side of a window in tokens, at least 1.
    """

    def __init__(self, dim: int, num_heads: int, qkv_bias: bool, window_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if qkv_bias else None
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window_size - 1) ** 2, num_heads)
        )
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer(
            "relative_position_index", relative_position_index(window_size), persistent=False
        )
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Tokens (B, height*width, D) -> tokens of the same shape."""
        x = window_partition(x, height, width, self.window_size)
        bias = None
        if self.q_bias is not None:
            bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        attn_bias = self.relative_position_bias_table[self.relative_position_index]
        x = attend(F.linear(x, self.qkv.weight, bias), self.num_heads, attn_bias.permute(2, 0, 1))
        x = window_reverse(x, height, width, self.window_size)
        return self.proj(x)


class Block(nn.Module):
    """A pre-norm transformer block with layer scale.

    Args:
        dim: channels D of a token.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the MLP, in units of ``dim``.
        qkv_bias: whether q, k and v have a bias.
        drop_path: probability of dropping a branch, per sample.
        layer_scale_init: initial value of the layer scale; ``None`` for no layer scale.
        window_size: side of the attention window in tokens; 0 for the whole map.
        use_rel_pos_bias: BEiT's attention instead of the plain one.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        mlp_ratio: float,
        qkv_bias: bool,
        drop_path: float,
        layer_scale_init: float | None,
        window_size: int,
        use_rel_pos_bias: bool,
    ) -> None:
        super().__init__()
        attention = RelativePositionAttention if use_rel_pos_bias else Attention
        self.norm1 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.attn = attention(dim, num_heads, qkv_bias, window_size)
        self.ls1 = layer_scale(dim, layer_scale_init)
        self.drop_path1 = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=LAYER_NORM_EPS)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.ls2 = layer_scale(dim, layer_scale_init)
        self.drop_path2 = DropPath(drop_path)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """Tokens (B, height*width, D) -> tokens of the same shape."""
        x = x + self.drop_path1(self.ls1(self.attn(self.norm1(x), height, width)))
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))


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


def attend(qkv: Tensor, num_heads: int, attn_bias: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention over each row of tokens.

    Args:
        qkv: (B, N, 3*D), q, k and v side by side.
        num_heads: heads that D is split into.
        attn_bias: (heads, N, N), added to the logits.

    Returns:
        (B, N, D).
    """
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    if attn_bias is not None:
        attn_bias = attn_bias.to(q.dtype)
    x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_bias)
    return x.transpose(1, 2).flatten(2)


def window_partition(tokens: Tensor, height: int, width: int, window_size: int) -> Tensor:
    """Cuts a map into windows, padding it with zeros at the bottom and right.

    Args:
        tokens: (B, height*width, C).
        height: rows of the map.
        width: columns of the map.
        window_size: side of a window.

    Returns:
        (B * windows, window_size**2, C).
    """
    x = tokens.unflatten(1, (height, width))
    if height % window_size or width % window_size:
        x = F.pad(x, (0, 0, 0, -width % window_size, 0, -height % window_size))
    x = x.unflatten(2, (-1, window_size)).unflatten(1, (-1, window_size))
    return x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(0, 2)


def window_reverse(windows: Tensor, height: int, width: int, window_size: int) -> Tensor:
    """Puts windows back together and crops the padding; the inverse of :func:`window_partition`.

    Args:
        windows: (B * windows, window_size**2, C).
        height: rows of the map.
        width: columns of the map.
        window_size: side of a window.

    Returns:
        (B, height*width, C).
    """
    rows, columns = -(-height // window_size), -(-width // window_size)
    x = windows.unflatten(1, (window_size, window_size)).unflatten(0, (-1, rows, columns))
    x = x.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)
    return x[:, :height, :width].flatten(1, 2)


def relative_position_index(window_size: int) -> Tensor:
    """Row of BEiT's relative position table for every pair of tokens of a window.

    Args:
        window_size: side w of the window.

    Returns:
        (w*w, w*w) int64, values in [0, (2w - 1)**2): the row offset times (2w - 1) plus the column
        offset, both shifted to start at 0.
    """
    axis = torch.arange(window_size)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + window_size - 1
    dx = x[:, None] - x[None, :] + window_size - 1
    return dy * (2 * window_size - 1) + dx
