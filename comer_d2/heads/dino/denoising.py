"""Contrastive denoising: objects with noise as extra queries, to be restored or rejected."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from .boxes import inverse_sigmoid


class DenoisingQueries(NamedTuple):
    """Extra queries: groups of a positive and a negative for every object of the largest image.

    Attributes:
        contents: (B, N, D), N = groups * 2 * objects.
        boxes: (B, N, 4) as (cx, cy, w, h); [0, 1] is the image.
        num_groups: groups G.
        group_size: queries of a group: its positives in the objects' order, then its negatives.
    """

    contents: Tensor
    boxes: Tensor
    num_groups: int
    group_size: int

    def allowed(self, num_queries: int) -> Tensor:
        """Which query sees which: matching queries only each other, a group itself and them.

        Args:
            num_queries: matching queries Q, which follow the denoising ones.

        Returns:
            (N + Q, N + Q) bool, True where the row's query sees the column's.
        """
        device = self.contents.device
        groups = torch.arange(self.num_groups, device=device).repeat_interleave(self.group_size)
        matching = groups.new_full((num_queries,), self.num_groups)
        group = torch.cat([groups, matching])
        return (group[:, None] == group) | (group == self.num_groups)

    def matches(self, counts: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """The positives of every image and their objects.

        Args:
            counts: objects of every image.

        Returns:
            For every image queries and objects, both (groups * count,) int64 on the CPU.
        """
        starts = torch.arange(self.num_groups) * self.group_size
        return [
            (
                (starts[:, None] + torch.arange(count)).flatten(),
                torch.arange(count).repeat(self.num_groups),
            )
            for count in counts
        ]


class DenoisingGenerator(nn.Module):
    """Makes noisy copies of the objects.

    A corner of a positive moves by less than half of its box's width and height (times
    ``box_noise``), one of a negative by up to twice that and at least as far.

    Source: Sec. 3.3 of arXiv 2203.03605.

    Args:
        dim: channels D of a query.
        num_classes: classes K.
        num_queries: positives in all groups together, about; there is always one group.
        label_noise: half of this share of the labels is drawn anew.
        box_noise: scale of the corners' noise.
        rand: shape, device -> uniform numbers in [0, 1); a test may bring its own.

    Raises:
        ValueError: for numbers that mean nothing.
    """

    def __init__(
        self,
        *,
        dim: int = 256,
        num_classes: int,
        num_queries: int = 100,
        label_noise: float = 0.5,
        box_noise: float = 1.0,
        rand: Callable[..., Tensor] = torch.rand,
    ) -> None:
        super().__init__()
        if num_queries < 0 or box_noise < 0 or not 0 <= label_noise <= 1:
            raise ValueError(
                "denoising takes num_queries and box_noise from 0 on and label_noise in [0, 1], got "
                f"{num_queries}, {box_noise} and {label_noise}"
            )
        self.num_classes = num_classes
        self.num_queries = num_queries
        self.label_noise = label_noise
        self.box_noise = box_noise
        self.rand = rand
        self.label_embed = nn.Embedding(num_classes, dim)

    def forward(self, targets: Sequence[dict[str, Tensor]]) -> DenoisingQueries:
        """Objects -> denoising queries.

        Args:
            targets: of every image ``labels`` (n,) and ``boxes`` (n, 4) as (cx, cy, w, h); [0, 1] is
                the image.

        Returns:
            The queries. Places of images with fewer objects have an empty content and the box
            (0.5, 0.5, 0.5, 0.5); without any object there is one such pair, so that the embedding
            of the labels is always part of the graph (DistributedDataParallel wants it).
        """
        device = self.label_embed.weight.device
        counts = [len(target["labels"]) for target in targets]
        objects = max(1, *counts)
        num_groups = max(1, self.num_queries // objects)
        labels = torch.zeros(len(targets), objects, dtype=torch.int64, device=device)
        boxes = torch.zeros(len(targets), objects, 4, device=device)
        for i, (target, count) in enumerate(zip(targets, counts, strict=True)):
            labels[i, :count] = target["labels"]
            boxes[i, :count] = target["boxes"].float()
        exists = torch.arange(objects, device=device) < torch.tensor(counts, device=device)[:, None]
        shape = (len(targets), num_groups, 2, objects)
        labels, boxes, exists = (
            x[:, None, None].expand(*shape, *x.shape[2:]) for x in (labels, boxes, exists)
        )
        contents = self.label_embed(self.noisy_labels(labels)) * exists[..., None]
        boxes = torch.where(exists[..., None], self.noisy_boxes(boxes), 0.5)
        return DenoisingQueries(
            contents.flatten(1, 3), boxes.flatten(1, 3), num_groups, 2 * objects
        )

    def noisy_labels(self, labels: Tensor) -> Tensor:
        """Labels (B, G, 2, n) -> labels (B, G, 2, n), some of them drawn anew."""
        redrawn = self.rand(labels.shape, device=labels.device) < self.label_noise / 2
        drawn = self.rand(labels.shape, device=labels.device) * self.num_classes
        return torch.where(redrawn, drawn.long(), labels)

    def noisy_boxes(self, boxes: Tensor) -> Tensor:
        """Boxes (B, G, 2, n, 4), positives and negatives -> boxes of the same shape, moved."""
        forward = self.rand(boxes.shape, device=boxes.device) >= 0.5
        farther = torch.arange(2, device=boxes.device).view(2, 1, 1)  # the negatives'
        moves = self.rand(boxes.shape, device=boxes.device) + farther
        moves = torch.where(forward, moves, -moves)
        half_sides = boxes[..., 2:].repeat(1, 1, 1, 1, 2) / 2
        corners = box_convert(boxes, "cxcywh", "xyxy") + moves * half_sides * self.box_noise
        # Through the logits that the decoder refines: no side is quite empty.
        boxes = box_convert(corners.clamp(0, 1), "xyxy", "cxcywh")
        return inverse_sigmoid(boxes).sigmoid()
