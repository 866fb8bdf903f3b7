"""Hungarian matching of Mask2Former's queries to objects, by class and mask."""

from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .hungarian import Hungarian, Matches
from .points import sample_masks, sample_points


class HungarianMatcher(nn.Module):
    """Assigns every object to a query at the least total cost.

    Source: Sec. 3.3 of arXiv 2112.01527.

    Args:
        cost_class: weight of minus the probability of the object's class.
        cost_mask: weight of the masks' mean binary cross entropy.
        cost_dice: weight of the masks' dice loss.
        num_points: random points at which masks are compared.
        rand: shape, device -> uniform numbers in [0, 1); a test may bring its own.
    """

    def __init__(
        self,
        *,
        cost_class: float = 2.0,
        cost_mask: float = 5.0,
        cost_dice: float = 5.0,
        num_points: int = 12544,
        rand: Callable[..., Tensor] = torch.rand,
    ) -> None:
        super().__init__()
        self.cost_class = cost_class
        self.cost_mask = cost_mask
        self.cost_dice = cost_dice
        self.num_points = num_points
        self.rand = rand
        self.assign = Hungarian()

    @torch.no_grad()
    def forward(
        self, predictions: Sequence[dict[str, Tensor]], targets: Sequence[dict[str, Tensor]]
    ) -> Iterator[Matches]:
        """Matches every image of a batch, for every prediction.

        Args:
            predictions: of every layer ``pred_logits`` (B, Q, K + 1), ``pred_masks`` (B, Q, h, w).
            targets: of every image ``labels`` (n,) and ``masks`` (n, H, W), 0 and 1; and, for
                messages, its ``name``.

        Returns:
            An iterator over the predictions: for every image the matched queries, ascending, and
            their objects, both (min(Q, n),) int64 on the CPU. The first waits for the costs.
        """
        costs = []
        for i, target in enumerate(targets):
            masks = [prediction["pred_masks"][i] for prediction in predictions]
            # As in the official project other points for every prediction; but the objects' masks,
            # which are as large as the image, are read once for all of them.
            points = self.rand((len(masks), self.num_points, 2), device=masks[0].device)
            predicted = [
                sample_points(m[None], p[None]) for m, p in zip(masks, points, strict=True)
            ]
            wanted = sample_masks(target["masks"], points.flatten(0, 1)[None])
            logits = torch.stack([prediction["pred_logits"][i] for prediction in predictions])
            wanted = wanted.unflatten(1, (len(masks), self.num_points)).transpose(0, 1)
            costs.append(self.cost(logits, torch.cat(predicted), target["labels"], wanted))
        return self.assign([cost.unbind() for cost in costs], targets)

    def cost(self, logits: Tensor, predicted: Tensor, labels: Tensor, wanted: Tensor) -> Tensor:
        """Cost of every pair of one image, for every prediction.

        Args:
            logits: (L, Q, K + 1).
            predicted: (L, Q, P) logits of the queries' masks at the points.
            labels: (n,) of the objects.
            wanted: (L, n, P) the objects' masks at the points.

        Returns:
            (L, Q, n) float32.
        """
        # Not in half precision: sums over thousands of points.
        with torch.autocast(logits.device.type, enabled=False):
            cost_class = -logits.float().softmax(dim=-1)[..., labels]
            # Cross entropy of every pair as two matrix products: with target 1 and with target 0.
            cost_mask = (
                F.softplus(-predicted) @ wanted.mT + F.softplus(predicted) @ (1 - wanted).mT
            ) / self.num_points
            probability = predicted.sigmoid()
            overlap = 2 * probability @ wanted.mT
            total = probability.sum(dim=-1)[..., None] + wanted.sum(dim=-1)[:, None]
            cost_dice = 1 - (overlap + 1) / (total + 1)
            return (
                self.cost_mask * cost_mask
                + self.cost_class * cost_class
                + self.cost_dice * cost_dice
            )
