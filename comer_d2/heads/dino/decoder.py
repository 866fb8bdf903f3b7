"""DINO's decoder: queries with a box each, refined layer by layer."""

import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...layers.attention import MultiheadAttention
from ...layers.deform_attn import MSDeformAttn
from ...layers.levels import Levels
from ...layers.linear import Linear
from .boxes import encode_boxes, inverse_sigmoid
from .canvas import Canvas
from .predictors import Prediction, bbox_embed, class_embed


class DINODecoder(nn.Module):
    """Queries and their boxes -> classes and better boxes, layer by layer.

    Source: Sec. 3 of arXiv 2203.03605 (DINO), with DAB-DETR's box encoding as the queries' position.

    Args:
        dim: channels D of a query.
        num_classes: classes K.
        num_levels: levels L of the memory.
        num_layers: layers.
        num_heads: attention heads.
        num_points: sampling points per head and level.
        ffn_dim: hidden channels of the feed-forward networks.
        use_act_checkpoint: compute each layer's activations again in the backward pass instead of
            keeping them.

    Raises:
        ValueError: without layers, nothing would be predicted.
    """

    def __init__(
        self,
        *,
        dim: int = 256,
        num_classes: int,
        num_levels: int = 4,
        num_layers: int = 6,
        num_heads: int = 8,
        num_points: int = 4,
        ffn_dim: int = 2048,
        use_act_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if num_layers < 1:
            raise ValueError(f"num_layers of the decoder must be at least 1, got {num_layers}")
        self.num_classes = num_classes
        self.num_levels = num_levels
        self.use_act_checkpoint = use_act_checkpoint
        self.layers = nn.ModuleList(
            DecoderLayer(dim, num_levels, num_heads, num_points, ffn_dim) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        linears = Linear(2 * dim, dim), Linear(dim, dim)
        self.box_position = nn.Sequential(linears[0], nn.ReLU(), linears[1])
        for linear in linears:
            nn.init.xavier_uniform_(linear.weight)
        self.class_embed = nn.ModuleList(class_embed(dim, num_classes) for _ in range(num_layers))
        self.bbox_embed = nn.ModuleList(bbox_embed(dim) for _ in range(num_layers))

    def forward(
        self,
        x: Tensor,
        boxes: Tensor,
        memory: Tensor,
        canvas: Canvas,
        allowed: Tensor | None = None,
    ) -> list[Prediction]:
        """Decodes queries.

        Every layer starts from the boxes of the one before without their gradient. Its prediction,
        though, stands on the boxes with their gradient, so that a layer also learns from the next
        one's loss: it looks forward twice (Sec. 3.5).

        Args:
            x: (B, Q, D), the queries' contents.
            boxes: (B, Q, 4) float32 as (cx, cy, w, h); [0, 1] is the image. They get no gradient.
            memory: (B, S, D), the encoder's tokens.
            canvas: where they are.
            allowed: bool, broadcast to (B, heads, Q, Q): True where a query sees another; None: all
                see all.

        Returns:
            In training the prediction of every layer; otherwise the last one's alone.
        """
        boxes = with_gradient = boxes.detach()
        padding = canvas.padding()
        predictions = []
        for i, (layer, to_classes, to_change) in enumerate(
            zip(self.layers, self.class_embed, self.bbox_embed, strict=True)
        ):
            on_levels = canvas.on_levels(boxes)
            # Relative to the padded batch, not to the image: so DINO is published and trained.
            position = self.box_position(encode_boxes(on_levels[:, :, 0], x.shape[-1] // 2))
            arguments = (x, position, on_levels, memory, canvas.levels, padding, allowed)
            if self.use_act_checkpoint and self.training:
                x = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                x = layer(*arguments)
            if self.training or i == len(self.layers) - 1:
                normed = self.norm(x)
                predictions.append(
                    Prediction(to_classes(normed), refine(with_gradient, to_change(normed)))
                )
            # The next layer's boxes come from the queries before the norm.
            with_gradient = refine(boxes, to_change(x))
            boxes = with_gradient.detach()
        return predictions


def refine(boxes: Tensor, change: Tensor) -> Tensor:
    """Boxes (..., 4) in [0, 1], their logits changed by (..., 4) -> boxes (..., 4) float32."""
    return (inverse_sigmoid(boxes) + change.float()).sigmoid()


class DecoderLayer(nn.Module):
    """One post-norm layer: self-attention, deformable attention to the memory, feed-forward.

    Arguments as of :class:`DINODecoder`.
    """

    def __init__(
        self, dim: int, num_levels: int, num_heads: int, num_points: int, ffn_dim: int
    ) -> None:
        super().__init__()
        self.self_attn = MultiheadAttention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attn = MSDeformAttn(dim, num_levels, num_heads, num_points)
        self.norm2 = nn.LayerNorm(dim)
        self.linear1 = Linear(dim, ffn_dim)
        self.linear2 = Linear(ffn_dim, dim)
        self.norm3 = nn.LayerNorm(dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(
        self,
        x: Tensor,
        position: Tensor,
        boxes: Tensor,
        memory: Tensor,
        levels: Levels,
        padding: Tensor | None,
        allowed: Tensor | None,
    ) -> Tensor:
        """Updates the queries' contents.

        Args:
            x: (B, Q, D).
            position: (B, Q, D), added to queries and keys.
            boxes: (B, Q, L or 1, 4), on every padded level.
            memory: (B, S, D).
            levels: sizes of its levels.
            padding: (B, S) bool, True at tokens that are not of the image.
            allowed: bool, broadcast to (B, heads, Q, Q).

        Returns:
            (B, Q, D).
        """
        query = x + position
        x = self.norm1(x + self.self_attn(query, query, x, allowed))
        x = self.norm2(x + self.cross_attn(x + position, boxes, memory, levels, padding))
        return self.norm3(x + self.linear2(F.relu(self.linear1(x))))
