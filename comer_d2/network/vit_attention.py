"""Self-attention of the ViT branch: over the whole map or in windows, with or without a class token.

Token rows are always (prefix tokens, map row by row). Prefix tokens, which are class and register
tokens, have no place on the map: they take no rotation, every window sees their keys, and their
own queries see the whole map.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from timm.layers import apply_rot_embed_cat, trunc_normal_
from torch import Tensor, nn

from ..layers.linear import Linear, linear
from ..layers.norm import LayerNorm
from ..layers.positions import resize_bicubic

QKVBias = Literal["qkv", "qv", "none"]
CLASS_ROWS = 3  # class to token, token to class, class to itself: the last of BEiT's tables


class QKV(Linear):
    """The linear layer that gives q, k and v side by side.

    Args:
        dim: channels D of a token.
        bias: which of the three have a bias; those of ``"qv"`` are parameters of their own, as in
            BEiT and EVA-02.
    """

    def __init__(self, dim: int, bias: QKVBias) -> None:
        super().__init__(dim, 3 * dim, bias=bias == "qkv")
        self.q_bias = nn.Parameter(torch.zeros(dim)) if bias == "qv" else None
        self.v_bias = nn.Parameter(torch.zeros(dim)) if bias == "qv" else None

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (..., D) -> (..., 3*D)."""
        if self.q_bias is None or self.v_bias is None:
            return super().forward(x)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return linear(x, self.weight, bias)


class Attention(nn.Module):
    """Multi-head self-attention over all tokens, or within windows.

    Windows do not overlap. Where they do not divide the map, q, k and v are padded with zeros at
    the bottom and right, without a mask: a padded key takes part in the softmax with logit 0. This
    is what the released weights were trained with. (Detectron2's own ViT pads before the qkv
    projection, so that its padded keys carry the projection's bias.)

    Args:
        dim: channels D of a token.
        num_heads: attention heads; must divide ``dim``.
        qkv_bias: which of q, k and v have a bias.
        window_size: side of a window in tokens; 0 attends over the whole map.
        sub_norm_eps: epsilon of a layer norm before the output projection; ``None`` for no norm.
        rotate_half: whether rotary positions pair channel i with i + d/2, as DINOv3 does, instead
            of 2i with 2i + 1.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: QKVBias,
        window_size: int,
        *,
        sub_norm_eps: float | None = None,
        rotate_half: bool = False,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window_size = window_size
        self.rotate_half = rotate_half
        self.qkv = QKV(dim, qkv_bias)
        self.norm = nn.Identity() if sub_norm_eps is None else LayerNorm(dim, sub_norm_eps)
        self.proj = Linear(dim, dim)

    def forward(
        self,
        x: Tensor,
        height: int,
        width: int,
        rope: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, P + height*width, D) -> tokens of the same shape.

        Args:
            x: the tokens.
            height: rows of the map.
            width: columns of the map.
            rope: (height*width, 2*d) sines, then cosines, of rotary positions; d channels a head.
            allowed: (B, 1, N, N) bool, which tokens see which, where attention is global; ``None``:
                all see all.

        Raises:
            ValueError: for ``allowed`` in windows.
        """
        if self.window_size and allowed is not None:
            raise ValueError("allowed is for global attention, not for windows")
        qkv = self.qkv(x)
        if rope is not None:
            qkv = self.rotate(qkv, rope)
        if self.window_size:
            x = self.attend_in_windows(qkv, height, width)
        else:
            x = attend(qkv, self.num_heads, allowed)
        return self.proj(self.norm(x))

    def rotate(self, qkv: Tensor, rope: Tensor) -> Tensor:
        """Turns q and k of the map's tokens by their positions."""
        num_prefix = qkv.shape[1] - rope.shape[0]
        parts = qkv.unflatten(-1, (3, self.num_heads, -1))
        query_key = apply_rot_embed_cat(
            parts[:, num_prefix:, :2], rope[:, None, None], half=self.rotate_half
        )
        query_key = torch.cat([parts[:, :num_prefix, :2], query_key.to(qkv.dtype)], dim=1)
        return torch.cat([query_key, parts[:, :, 2:]], dim=2).flatten(2)

    def attend_in_windows(self, qkv: Tensor, height: int, width: int) -> Tensor:
        """Rows (B, P + height*width, 3*D) -> (B, P + height*width, D)."""
        num_prefix = qkv.shape[1] - height * width
        windows = window_partition(qkv[:, num_prefix:], height, width, self.window_size)
        if num_prefix:
            windows = with_prefix(qkv[:, :num_prefix], windows)
        x = attend(windows, self.num_heads)[:, num_prefix:]
        x = window_reverse(x, height, width, self.window_size)
        if num_prefix:
            x = torch.cat([attend(qkv, self.num_heads, num_queries=num_prefix), x], dim=1)
        return x


class RelativePositionAttention(Attention):
    """Self-attention with BEiT's relative position bias.

    As BEiT does, windows are padded *before* the projection, so that a padded token has the biases
    of q, k and v for its own (of k there is none) and takes part in the softmax with its relative
    bias.

    Over a whole map, which has no padding, the table is that of ``grid_size`` and is resized,
    bicubic, to the offsets of the map.

    Source: BEiT, arXiv 2106.08254, Sec. 2.2; windows as in its detection transfers.

    Args:
        dim: channels D of a token.
        num_heads: attention heads; must divide ``dim``.
        qkv_bias: which of q, k and v have a bias; ``"qv"`` in BEiT.
        window_size: side of a window in tokens; 0 attends over the whole map.
        grid_size: side of the map that the table is for, where there is no window.
        class_token: whether there is one prefix token, which has rows of its own in the table.
        sub_norm_eps: as in :class:`Attention`.
    """

    relative_position_index: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int,
        qkv_bias: QKVBias,
        window_size: int,
        *,
        grid_size: int = 0,
        class_token: bool = False,
        sub_norm_eps: float | None = None,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, window_size, sub_norm_eps=sub_norm_eps)
        self.table_side = 2 * (window_size or grid_size) - 1
        self.class_token = class_token
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros(self.table_side**2 + CLASS_ROWS * class_token, num_heads)
        )
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        if window_size:
            index = relative_position_index(window_size, window_size, class_token=class_token)
            self.register_buffer("relative_position_index", index, persistent=False)

    def forward(
        self,
        x: Tensor,
        height: int,
        width: int,
        rope: Tensor | None = None,
        allowed: Tensor | None = None,
    ) -> Tensor:
        """Tokens (B, P + height*width, D) -> tokens of the same shape.

        ``rope`` and ``allowed`` must be ``None``.
        """
        if rope is not None or allowed is not None:
            raise ValueError("attention with relative positions takes neither rope nor allowed")
        qkv = self.qkv(x)
        if not self.window_size:
            x = attend(qkv, self.num_heads, self.map_bias(height, width))
            return self.proj(self.norm(x))
        num_prefix = int(self.class_token)
        padding = None
        window = self.window_size
        if torch.compiler.is_compiling() or height % window or width % window:
            padding = self.qkv(x.new_zeros(1, 1, x.shape[-1]))[0, 0]
        windows = window_partition(qkv[:, num_prefix:], height, width, self.window_size, padding)
        if num_prefix:
            windows = with_prefix(qkv[:, :1], windows)
        table = self.relative_position_bias_table
        attn_bias = table[self.relative_position_index].permute(2, 0, 1)
        x = attend(windows, self.num_heads, attn_bias)[:, num_prefix:]
        x = window_reverse(x, height, width, self.window_size)
        if num_prefix:
            query_bias = table[-CLASS_ROWS].expand(qkv.shape[1] - 1, -1)
            query_bias = torch.cat([table[-1:], query_bias]).t().unsqueeze(1)
            prefix = attend(qkv, self.num_heads, query_bias, num_queries=1)
            x = torch.cat([prefix, x], dim=1)
        return self.proj(self.norm(x))

    def map_bias(self, height: int, width: int) -> Tensor:
        """The bias (heads, N, N) between all tokens of a map; N counts the class token."""
        table = self.relative_position_bias_table
        offsets, class_rows = table[: self.table_side**2], table[self.table_side**2 :]
        size = (2 * height - 1, 2 * width - 1)
        if torch.compiler.is_compiling() or size != (self.table_side, self.table_side):
            grid = offsets.unflatten(0, (self.table_side, self.table_side))[None]
            offsets = resize_bicubic(grid, *size)[0].flatten(0, 1)
        index = relative_position_index(
            height, width, class_token=self.class_token, device=table.device
        )
        return torch.cat([offsets, class_rows])[index].permute(2, 0, 1)


def attend(
    qkv: Tensor,
    num_heads: int,
    attn_mask: Tensor | None = None,
    num_queries: int | None = None,
) -> Tensor:
    """Scaled dot-product attention over each row of tokens.

    Args:
        qkv: (B, N, 3*D), q, k and v side by side.
        num_heads: heads that D is split into.
        attn_mask: (heads, Q, N), added to the logits; or bool, True where attention is allowed.
        num_queries: Q, only the first Q tokens ask; ``None``: all N.

    Returns:
        (B, Q, D).
    """
    q, k, v = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        attn_mask = attn_mask.to(q.dtype)
    x = F.scaled_dot_product_attention(q[:, :, :num_queries], k, v, attn_mask=attn_mask)
    return x.transpose(1, 2).flatten(2)


def with_prefix(prefix: Tensor, windows: Tensor) -> Tensor:
    """Puts each image's prefix rows (B, P, C) in front of each of its windows (B*n, w*w, C)."""
    windows_per_image = windows.shape[0] // prefix.shape[0]
    return torch.cat([prefix.repeat_interleave(windows_per_image, dim=0), windows], dim=1)


def window_partition(
    tokens: Tensor, height: int, width: int, window_size: int, padding: Tensor | None = None
) -> Tensor:
    """Cuts a map into windows, padding it at the bottom and right.

    Args:
        tokens: (B, height*width, C).
        height: rows of the map.
        width: columns of the map.
        window_size: side of a window.
        padding: (C,), a padded token; ``None`` for zeros.

    Returns:
        (B * windows, window_size**2, C).
    """
    x = tokens.unflatten(1, (height, width))
    bottom, right = -height % window_size, -width % window_size
    if torch.compiler.is_compiling() or bottom or right:  # one graph for all sizes does not ask
        x = F.pad(x, (0, 0, 0, right, 0, bottom))
        if padding is not None:
            rows = torch.arange(height + bottom, device=x.device) < height
            columns = torch.arange(width + right, device=x.device) < width
            inside = rows[:, None] & columns
            x = torch.where(inside[..., None], x, padding)
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


def relative_position_index(
    height: int,
    width: int,
    *,
    class_token: bool = False,
    device: torch.device | None = None,
) -> Tensor:
    """Row of BEiT's relative position table for every pair of tokens of a map.

    Args:
        height: rows h of the map.
        width: columns w of the map.
        class_token: whether token 0 is the class token, whose rows end the table.
        device: of the result.

    Returns:
        (N, N) int64, values in [0, (2h - 1) * (2w - 1)): the row offset times (2w - 1) plus the
        column offset, both shifted to start at 0. The three values that follow are those of class
        to token, token to class, and class to itself.
    """
    y, x = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij"
    )
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + height - 1
    dx = x[:, None] - x[None, :] + width - 1
    index = dy * (2 * width - 1) + dx
    if class_token:
        first = (2 * height - 1) * (2 * width - 1)
        index = F.pad(index, (1, 0, 1, 0))
        index[0], index[:, 0], index[0, 0] = first, first + 1, first + 2
    return index
