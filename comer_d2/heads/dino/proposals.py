"""Two-stage proposals: every token of the encoder proposes a box, the best become queries."""

import torch
from torch import Tensor, nn

from ...layers.linear import Linear
from .canvas import Canvas
from .predictors import Prediction, bbox_embed, class_embed

# Proposals nearer to the image's border, or larger, than this are not used.
LOW, HIGH = 0.01, 0.99


class ProposalHead(nn.Module):
    """Scores a box at every token and selects by the best class.

    Source: Sec. 3.4 of arXiv 2203.03605 (mixed query selection: what is selected gives the queries'
    boxes, not their contents); the boxes as in A.4 of arXiv 2010.04159.

    Args:
        dim: channels D of a token.
        num_classes: classes K.
    """

    def __init__(self, *, dim: int = 256, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.proj = Linear(dim, dim)
        nn.init.xavier_uniform_(self.proj.weight)
        self.norm = nn.LayerNorm(dim)
        self.class_embed = class_embed(dim, num_classes)
        self.bbox_embed = bbox_embed(dim)

    def forward(self, memory: Tensor, canvas: Canvas, num_queries: int) -> Prediction:
        """Selects the best proposals.

        Args:
            memory: (B, S, D), the encoder's tokens.
            canvas: where they are.
            num_queries: as many are selected, or all tokens if there are fewer.
        """
        proposals = canvas.proposals()
        usable = ((proposals > LOW) & (proposals < HIGH)).all(dim=-1)
        padding = canvas.padding()
        if padding is not None:
            usable = usable & ~padding
        x = self.norm(self.proj(memory.masked_fill(~usable[..., None], 0)))
        logits = self.class_embed(x)
        # Never padding, or predictions would depend on it. (The released DINO can select it.)
        best = logits.amax(dim=-1).masked_fill(~usable, -torch.inf)
        best = best.topk(min(num_queries, logits.shape[1]), dim=1).indices[..., None]
        # Where nothing is proposed, the box's logits are infinite, and the box is (1, 1, 1, 1).
        at = torch.logit(proposals).masked_fill(~usable[..., None], torch.inf)
        at = at.expand(x.shape[0], -1, -1).gather(1, best.expand(-1, -1, 4))
        x = x.gather(1, best.expand(-1, -1, x.shape[-1]))
        boxes = (self.bbox_embed(x).float() + at).sigmoid()
        return Prediction(logits.gather(1, best.expand(-1, -1, logits.shape[-1])), boxes)
