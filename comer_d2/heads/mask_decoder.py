"""Mask2Former's transformer decoder: queries that look where their own mask is."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.attention import MultiheadAttention
from ..layers.levels import map_to_tokens
from ..layers.linear import Linear
from ..layers.positions import sine_position_encoding


class MaskedTransformerDecoder(nn.Module):
    """Queries -> classes and masks, refined layer by layer.

    Parameters have the names of the official project, but for q, k and v of the attentions.

    Source: Sec. 3.2 of arXiv 2112.01527.

    Args:
        in_channels: channels of the pixel decoder's maps.
        num_classes: classes K, without the no-object class.
        hidden_dim: channels C of a query.
        mask_dim: channels of the mask features.
        num_queries: queries Q.
        num_heads: attention heads.
        num_layers: decoder layers; there is one prediction more. (The official project's
            DEC_LAYERS counts the predictions.)
        ffn_dim: hidden channels of the feed-forward networks.
        num_levels: maps that the layers take in turn.
        enforce_input_project: project the maps even where they have C channels already.
        pre_norm: norms in front of attention and feed-forward networks, instead of behind the sums.

    Raises:
        ValueError: if ``hidden_dim`` is not a multiple of ``num_heads`` and of 4.
    """

    def __init__(
        self,
        *,
        in_channels: int = 256,
        num_classes: int,
        hidden_dim: int = 256,
        mask_dim: int = 256,
        num_queries: int = 100,
        num_heads: int = 8,
        num_layers: int = 9,
        ffn_dim: int = 2048,
        num_levels: int = 3,
        enforce_input_project: bool = False,
        pre_norm: bool = False,
    ) -> None:
        super().__init__()
        if hidden_dim % num_heads or hidden_dim % 4:
            raise ValueError(
                f"hidden_dim {hidden_dim} must be a multiple of num_heads {num_heads} and of 4"
            )
        self.num_levels = num_levels
        self.transformer_self_attention_layers = nn.ModuleList(
            SelfAttentionLayer(hidden_dim, num_heads, pre_norm) for _ in range(num_layers)
        )
        self.transformer_cross_attention_layers = nn.ModuleList(
            CrossAttentionLayer(hidden_dim, num_heads, pre_norm) for _ in range(num_layers)
        )
        self.transformer_ffn_layers = nn.ModuleList(
            FFNLayer(hidden_dim, ffn_dim, pre_norm) for _ in range(num_layers)
        )
        self.decoder_norm = nn.LayerNorm(hidden_dim)
        self.query_feat = nn.Embedding(num_queries, hidden_dim)
        self.query_embed = nn.Embedding(num_queries, hidden_dim)
        self.level_embed = nn.Embedding(num_levels, hidden_dim)
        project = in_channels != hidden_dim or enforce_input_project
        self.input_proj = nn.ModuleList(
            nn.Conv2d(in_channels, hidden_dim, 1) if project else nn.Identity()
            for _ in range(num_levels)
        )
        self.class_embed = nn.Linear(hidden_dim, num_classes + 1)
        self.mask_embed = MLP([hidden_dim, hidden_dim, hidden_dim, mask_dim])
        for conv in self.input_proj:
            if isinstance(conv, nn.Conv2d):
                nn.init.kaiming_uniform_(conv.weight, a=1)
                assert conv.bias is not None
                nn.init.zeros_(conv.bias)

    def forward(self, maps: Sequence[Tensor], mask_features: Tensor) -> dict[str, Any]:
        """Predicts classes and masks.

        Args:
            maps: ``num_levels`` of (B, in_channels, H_i, W_i), coarsest first.
            mask_features: (B, mask_dim, H, W).

        Returns:
            ``pred_logits`` (B, Q, K + 1), the last class for no object; ``pred_masks``
            (B, Q, H, W), logits; ``aux_outputs``: in training the same two of every prediction
            before, from the first on. (Otherwise none: their masks would only take memory.)
        """
        memory, positions = self.memory(maps)
        batch = mask_features.shape[0]
        x = rows(self.query_feat).expand(batch, -1, -1)
        query_position = rows(self.query_embed)
        prediction = self.predict(x, mask_features)
        before = []
        layers = zip(
            self.transformer_cross_attention_layers,
            self.transformer_self_attention_layers,
            self.transformer_ffn_layers,
            strict=True,
        )
        for i, (cross_attention, self_attention, ffn) in enumerate(layers):
            level = i % self.num_levels
            allowed = attention_mask(prediction["pred_masks"], maps[level].shape[-2:])
            x = cross_attention(x, query_position, memory[level], positions[level], allowed)
            x = self_attention(x, query_position)
            x = ffn(x)
            if self.training:
                before.append(prediction)
            prediction = self.predict(x, mask_features)
        return {**prediction, "aux_outputs": before}

    def memory(self, maps: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Maps (B, in_channels, H_i, W_i) -> tokens (B, H_i*W_i, C), positions (H_i*W_i, C)."""
        memory, positions = [], []
        for feature, proj, embed in zip(maps, self.input_proj, rows(self.level_embed), strict=True):
            tokens = map_to_tokens(proj(feature)) + embed
            memory.append(tokens)
            height, width = feature.shape[-2:]
            position = sine_position_encoding(height, width, tokens.shape[-1], tokens.device)
            positions.append(position.to(embed.dtype))  # float32 also under autocast
        return memory, positions

    def predict(self, x: Tensor, mask_features: Tensor) -> dict[str, Tensor]:
        """Queries (B, Q, C) -> their classes (B, Q, K + 1) and masks (B, Q, H, W), logits."""
        x = self.decoder_norm(x)
        masks = torch.einsum("bqc,bchw->bqhw", self.mask_embed(x), mask_features)
        return {"pred_logits": self.class_embed(x), "pred_masks": masks}


def rows(table: nn.Embedding) -> Tensor:
    """All rows (N, C) of an embedding, by its forward: hooks and adapters take part."""
    return table(torch.arange(table.num_embeddings, device=table.weight.device))


def attention_mask(masks: Tensor, size: Sequence[int]) -> Tensor:
    """Where every query may look: inside its own mask, or everywhere if that is empty.

    Args:
        masks: (B, Q, H, W), logits.
        size: (h, w) of the map that is looked at.

    Returns:
        (B, 1, Q, h*w) bool, True where attention is allowed; the same for all heads. No gradient.
    """
    masks = masks.detach().float()
    masks = F.interpolate(masks, size=tuple(size), mode="bilinear", align_corners=False)
    allowed = (masks.sigmoid() >= 0.5).flatten(2)
    return (allowed | ~allowed.any(dim=-1, keepdim=True))[:, None]


class CrossAttentionLayer(nn.Module):
    """Queries look at a map.

    Args:
        dim: channels C.
        num_heads: attention heads.
        pre_norm: the norm in front of the attention, instead of behind the sum.
    """

    def __init__(self, dim: int, num_heads: int, pre_norm: bool = False) -> None:
        super().__init__()
        self.multihead_attn = MultiheadAttention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def forward(
        self,
        x: Tensor,
        query_position: Tensor,
        memory: Tensor,
        position: Tensor,
        allowed: Tensor,
    ) -> Tensor:
        """Queries (B, Q, C), their positions (Q, C), tokens (B, N, C), theirs (N, C) -> (B, Q, C)."""
        query = (self.norm(x) if self.pre_norm else x) + query_position
        x = x + self.multihead_attn(query, memory + position, memory, allowed)
        return x if self.pre_norm else self.norm(x)


class SelfAttentionLayer(nn.Module):
    """Queries look at each other. Arguments as of :class:`CrossAttentionLayer`."""

    def __init__(self, dim: int, num_heads: int, pre_norm: bool = False) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(dim, num_heads)
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm

    def forward(self, x: Tensor, query_position: Tensor) -> Tensor:
        """Queries (B, Q, C), their positions (Q, C) -> (B, Q, C)."""
        value = self.norm(x) if self.pre_norm else x
        query = value + query_position
        x = x + self.self_attn(query, query, value)
        return x if self.pre_norm else self.norm(x)


class FFNLayer(nn.Module):
    """Feed-forward network of a query.

    Args:
        dim: channels C.
        hidden_dim: hidden channels.
        pre_norm: the norm in front of the network, instead of behind the sum.
    """

    def __init__(self, dim: int, hidden_dim: int, pre_norm: bool = False) -> None:
        super().__init__()
        self.linear1 = Linear(dim, hidden_dim)
        self.linear2 = Linear(hidden_dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.pre_norm = pre_norm
        for layer in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Queries (B, Q, C) -> (B, Q, C)."""
        hidden = F.relu(self.linear1(self.norm(x) if self.pre_norm else x))
        x = x + self.linear2(hidden)
        return x if self.pre_norm else self.norm(x)


class MLP(nn.Module):
    """Linear layers with ReLU between them.

    Args:
        dims: channels of the input, between the layers, and of the output.
    """

    def __init__(self, dims: Sequence[int]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(dims[i], dims[i + 1]) for i in range(len(dims) - 1))

    def forward(self, x: Tensor) -> Tensor:
        """(..., dims[0]) -> (..., dims[-1])."""
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)
