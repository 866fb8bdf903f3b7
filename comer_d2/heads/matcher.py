"""Hungarian matching of Mask2Former's queries to objects, by class and mask."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .hungarian import Hungarian
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
        self, outputs: dict[str, Tensor], targets: list[dict[str, Tensor]]
    ) -> list[tuple[Tensor, Tensor]]:
        """Matches every image of a batch.

        Args:
            outputs: ``pred_logits`` (B, Q, K + 1), ``pred_masks`` (B, Q, h, w).
            targets: of every image ``labels`` (n,) and ``masks`` (n, H, W), 0 and 1; and, for
                messages, its ``name``.

        Returns:
            For every image the matched queries, ascending, and their objects, both (min(Q, n),)
            int64 on the CPU.
        """
        images = zip(outputs["pred_logits"], outputs["pred_masks"], targets, strict=True)
        return [
            self.assign(
                self.cost(logits, masks, target),
                str(target.get("name", f"image {i} of the batch")),
            )
            for i, (logits, masks, target) in enumerate(images)
        ]

    def cost(self, logits: Tensor, masks: Tensor, target: dict[str, Tensor]) -> Tensor:
        """Cost of every pair of one image.

        Args:
            logits: (Q, K + 1).
            masks: (Q, h, w), logits.
            target: ``labels`` (n,) and ``masks`` (n, H, W).

        Returns:
            (Q, n) float32.
        """
        points = self.rand((1, self.num_points, 2), device=masks.device)
        predicted = sample_points(masks[:, None], points.expand(len(masks), -1, -1))[:, 0]
        wanted = sample_masks(target["masks"], points)
        # Not in half precision: sums over thousands of points.
        with torch.autocast(masks.device.type, enabled=False):
            cost_class = -logits.float().softmax(dim=-1)[:, target["labels"]]
            # Cross entropy of every pair as two matrix products: with target 1 and with target 0.
            cost_mask = (
                F.softplus(-predicted) @ wanted.T + F.softplus(predicted) @ (1 - wanted).T
            ) / self.num_points
            probability = predicted.sigmoid()
            overlap = 2 * probability @ wanted.T
            total = probability.sum(dim=1)[:, None] + wanted.sum(dim=1)
            cost_dice = 1 - (overlap + 1) / (total + 1)
            return (
                self.cost_mask * cost_mask
                + self.cost_class * cost_class
                + self.cost_dice * cost_dice
            )
