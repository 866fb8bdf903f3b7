"""Co-DETR: the positives of other heads, which learn from the encoder's maps, as extra queries."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...layers.linear import Linear
from .boxes import encode_boxes


class Candidates(NamedTuple):
    """Boxes of one image that another head has assigned objects to.

    Attributes:
        boxes: (n, 4) as (cx, cy, w, h); [0, 1] is the image, but anchors may reach beyond it.
        labels: (n,) int64: a class, or the number of classes for the background.
        objects: (n, 4), the assigned objects' boxes; read where there is one.
    """

    boxes: Tensor
    labels: Tensor
    objects: Tensor


class CollaborativeQueries(NamedTuple):
    """Extra queries, as the decoder and the criterion take them.

    Attributes:
        contents: (B, N, D).
        boxes: (B, N, 4).
        targets: of every image `labels` (p,) and `boxes` (p, 4) of its positives' objects.
        matches: of every image the positives among the queries and their objects, each (p,).
    """

    contents: Tensor
    boxes: Tensor
    targets: list[dict[str, Tensor]]
    matches: list[tuple[Tensor, Tensor]]


class CollaborativeGenerator(nn.Module):
    """Turns the candidates of one other head into queries, all of them positives if they suffice.

    Images with fewer positives than the one with most are filled up with background, drawn at
    random; so are positives if there are too many.

    Source: Sec. 3.3 of arXiv 2211.12860; the numbers and the filling up are the released code's.

    Args:
        dim: channels D of a query.
        num_classes: classes K.
        least_queries: of every image.
        most_queries: of every image.
        rand: shape, device -> uniform numbers in [0, 1); a test may bring its own.

    Raises:
        ValueError: if there can be no such number of queries.
    """

    def __init__(
        self,
        *,
        dim: int = 256,
        num_classes: int,
        least_queries: int = 9,
        most_queries: int = 300,
        rand: Callable[..., Tensor] = torch.rand,
    ) -> None:
        super().__init__()
        if not 1 <= least_queries <= most_queries:
            raise ValueError(
                "least_queries must be at least 1 and at most most_queries, got "
                f"{least_queries} and {most_queries}"
            )
        self.num_classes = num_classes
        self.least_queries = least_queries
        self.most_queries = most_queries
        self.rand = rand
        self.proj = Linear(2 * dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, candidates: Sequence[Candidates]) -> CollaborativeQueries:
        """Candidates of every image -> queries."""
        positives = max(int((c.labels < self.num_classes).sum()) for c in candidates)
        number = max(self.least_queries, min(self.most_queries, positives))
        chosen = [self.choose(of_image, number) for of_image in candidates]
        boxes = torch.stack([of_image.boxes for of_image in chosen]).float()
        targets, matches = [], []
        for of_image in chosen:
            (queries,) = (of_image.labels < self.num_classes).nonzero(as_tuple=True)
            targets.append({"labels": of_image.labels[queries], "boxes": of_image.objects[queries]})
            matches.append((queries, torch.arange(len(queries), device=queries.device)))
        dim = self.proj.out_features
        contents = self.norm(self.proj(encode_boxes(boxes.clamp(0, 1), dim // 2)))
        return CollaborativeQueries(contents, boxes, targets, matches)

    def choose(self, candidates: Candidates, number: int) -> Candidates:
        """Positives first, then background; from the start again if there are too few of both."""
        if not len(candidates.labels):
            whole = candidates.boxes.new_tensor([[0.5, 0.5, 1.0, 1.0]])
            background = candidates.labels.new_tensor([self.num_classes])
            candidates = Candidates(whole, background, whole)
        labels = candidates.labels
        order = self.rand(labels.shape, device=labels.device) + (labels == self.num_classes)
        chosen = order.argsort()[:number]
        chosen = chosen[torch.arange(number, device=chosen.device) % len(chosen)]
        return Candidates(*(values[chosen] for values in candidates))
