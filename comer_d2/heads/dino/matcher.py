"""Matching of DINO's queries to objects by class and box."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou

from ..hungarian import Hungarian, Matches
from .predictors import Prediction


class BoxMatcher(nn.Module):
    """Assigns every object to a query at the least total cost.

    Source: Sec. 3.1 of arXiv 2005.12872 (DETR), with the focal class cost of arXiv 2010.04159.

    Args:
        cost_class: weight of the focal class cost.
        cost_bbox: weight of the L1 distance of (cx, cy, w, h).
        cost_giou: weight of minus the generalized IoU.
        alpha: of focal loss.
        gamma: of focal loss.
    """

    def __init__(
        self,
        *,
        cost_class: float = 2.0,
        cost_bbox: float = 5.0,
        cost_giou: float = 2.0,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.cost_class = cost_class
        self.cost_bbox = cost_bbox
        self.cost_giou = cost_giou
        self.alpha = alpha
        self.gamma = gamma
        self.assign = Hungarian()

    @torch.no_grad()
    def forward(
        self, predictions: Sequence[Prediction], targets: Sequence[dict[str, Tensor]]
    ) -> Iterator[Matches]:
        """Matches every image of a batch, for every prediction.

        Args:
            predictions: of every layer.
            targets: of every image ``labels`` (n,) and ``boxes`` (n, 4), as the queries'; and, for
                messages, its ``name``.

        Returns:
            An iterator over the predictions: for every image the matched queries, ascending, and
            their objects, both (min(Q, n),) int64 on the CPU. The first waits for the costs.
        """
        num_queries = [prediction.logits.shape[1] for prediction in predictions]
        costs = []
        for i, target in enumerate(targets):  # the queries of all predictions as those of one
            logits = torch.cat([prediction.logits[i] for prediction in predictions])
            boxes = torch.cat([prediction.boxes[i] for prediction in predictions])
            costs.append(self.cost(logits, boxes, target).split(num_queries))
        return self.assign(costs, targets)

    def cost(self, logits: Tensor, boxes: Tensor, target: dict[str, Tensor]) -> Tensor:
        """Cost of every pair of one image.

        Args:
            logits: (Q, K).
            boxes: (Q, 4).
            target: ``labels`` (n,) and ``boxes`` (n, 4).

        Returns:
            (Q, n) float32: what focal loss would change by, if the query had the object's class;
            the L1 distance; minus the generalized IoU; each weighted.
        """
        boxes, wanted = boxes.float(), target["boxes"].float()
        probability = logits.float().sigmoid()[:, target["labels"]]
        as_object = self.alpha * (1 - probability) ** self.gamma * -(probability + 1e-12).log()
        as_none = (1 - self.alpha) * probability**self.gamma * -(1 - probability + 1e-12).log()
        giou = generalized_box_iou(
            box_convert(boxes, "cxcywh", "xyxy"), box_convert(wanted, "cxcywh", "xyxy")
        )
        return (
            self.cost_class * (as_object - as_none)
            + self.cost_bbox * torch.cdist(boxes, wanted, p=1)
            - self.cost_giou * giou
        )
