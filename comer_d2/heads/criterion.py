"""Mask2Former's losses."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .distributed import accumulation_weights, mean_over_processes
from .hungarian import Matches, matched_pairs
from .matcher import HungarianMatcher
from .points import sample_masks, sample_points


class SetCriterion(nn.Module):
    """Class and mask losses of matched queries, for every prediction of the decoder.

    Source: Sec. 3.3 of arXiv 2112.01527.

    Args:
        num_classes: classes K, without the no-object class.
        matcher: assigns objects to queries.
        class_weight: weight of the cross entropy of the classes.
        mask_weight: weight of the masks' binary cross entropy.
        dice_weight: weight of the masks' dice loss.
        no_object_weight: weight of the no-object class in the cross entropy.
        num_points: points at which masks are compared.
        oversample_ratio: candidate points per kept point.
        importance_sample_ratio: share of the points that lie where the mask is least certain.
        rand: shape, device -> uniform numbers in [0, 1); a test may bring its own.
    """

    empty_weight: Tensor

    def __init__(
        self,
        *,
        num_classes: int,
        matcher: HungarianMatcher,
        class_weight: float = 2.0,
        mask_weight: float = 5.0,
        dice_weight: float = 5.0,
        no_object_weight: float = 0.1,
        num_points: int = 12544,
        oversample_ratio: float = 3.0,
        importance_sample_ratio: float = 0.75,
        rand: Callable[..., Tensor] = torch.rand,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.matcher = matcher
        self.weights = {"loss_ce": class_weight, "loss_mask": mask_weight, "loss_dice": dice_weight}
        self.num_points = num_points
        self.oversample_ratio = oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        self.rand = rand
        empty_weight = torch.ones(num_classes + 1)
        empty_weight[-1] = no_object_weight
        self.register_buffer("empty_weight", empty_weight)

    def forward(
        self, outputs: dict[str, Any], targets: list[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Weighted losses of the last prediction and of all before.

        Args:
            outputs: ``pred_logits`` (B, Q, K + 1), ``pred_masks`` (B, Q, h, w), ``aux_outputs``.
            targets: of every image ``labels`` (n,) and ``masks`` (n, H, W), 0 and 1, all of the
                padded size of the batch.

        Returns:
            ``loss_ce``, ``loss_mask``, ``loss_dice``, and with ``_0``, ``_1``, ... those of
            ``aux_outputs``.

        Raises:
            ValueError: if the targets' masks differ in size.
        """
        sizes = {tuple(target["masks"].shape[-2:]) for target in targets}
        if len(sizes) != 1:
            raise ValueError(f"target masks must all have one padded size, got {sorted(sizes)}")
        num_masks = self.mean_number_of_masks(targets, outputs["pred_logits"].device)
        predictions: list[dict[str, Any]] = [outputs, *outputs["aux_outputs"]]
        suffixes = ["", *(f"_{i}" for i in range(len(predictions) - 1))]
        losses = {}
        matches = self.matcher(predictions, targets)
        # The device computes the losses of one prediction while the next one's matches are found.
        for suffix, prediction, found in zip(suffixes, predictions, matches, strict=True):
            for name, loss in self.losses(prediction, targets, found, num_masks).items():
                losses[name + suffix] = loss * self.weights[name]
        return losses

    def losses(
        self,
        prediction: dict[str, Tensor],
        targets: Sequence[dict[str, Tensor]],
        matches: Matches,
        num_masks: Tensor,
    ) -> dict[str, Tensor]:
        """The three losses of one prediction, not weighted."""
        logits, masks = prediction["pred_logits"], prediction["pred_masks"]
        image, query, object_ = matched_pairs(matches, masks.device)
        objects = object_.split([len(queries) for queries, _ in matches])
        labels = [target["labels"][part] for target, part in zip(targets, objects, strict=True)]
        loss_ce = self.class_loss(logits, (image, query), torch.cat(labels))
        loss_mask, loss_dice = self.mask_losses(masks[image, query], targets, objects, num_masks)
        return {"loss_ce": loss_ce, "loss_mask": loss_mask, "loss_dice": loss_dice}

    def class_loss(self, logits: Tensor, at: tuple[Tensor, Tensor], labels: Tensor) -> Tensor:
        """Cross entropy of all queries; unmatched ones get the no-object label.

        Args:
            logits: (B, Q, K + 1).
            at: images and matched queries, both (M,).
            labels: (M,) of these queries.
        """
        wanted = torch.full(logits.shape[:2], self.num_classes, device=logits.device)
        wanted[at] = labels
        return F.cross_entropy(logits.float().transpose(1, 2), wanted, self.empty_weight)

    def mask_losses(
        self,
        masks: Tensor,
        targets: Sequence[dict[str, Tensor]],
        objects: Sequence[Tensor],
        num_masks: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Binary cross entropy and dice loss of the matched masks, at chosen points.

        Args:
            masks: (M, h, w), logits, those of the first image first.
            targets: ``masks`` (n, H, W) of every image.
            objects: of every image the objects that its masks are matched to; M in all.
            num_masks: () what the sums over masks are divided by.
        """
        masks = masks[:, None]
        with torch.no_grad():
            points = self.choose_points(masks)
            of_images = points.split([len(part) for part in objects])
            labels = torch.cat(
                [
                    sample_masks(target["masks"], at, chosen)
                    for target, at, chosen in zip(targets, of_images, objects, strict=True)
                ]
            )
        logits = sample_points(masks, points)[:, 0]
        bce = F.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        probability = logits.sigmoid()
        overlap = 2 * (probability * labels).sum(dim=1)
        total = probability.sum(dim=1) + labels.sum(dim=1)
        dice = 1 - (overlap + 1) / (total + 1)
        return bce.mean(dim=1).sum() / num_masks, dice.sum() / num_masks

    def choose_points(self, masks: Tensor) -> Tensor:
        """Points where the masks are least certain, and some at random.

        Source: PointRend, Sec. 3.1 of arXiv 1912.08193.

        Args:
            masks: (M, 1, h, w), logits.

        Returns:
            (M, num_points, 2) in [0, 1).
        """
        count = len(masks)
        candidates = self.rand(
            (count, int(self.num_points * self.oversample_ratio), 2), device=masks.device
        )
        certainty = sample_points(masks, candidates)[:, 0].abs()
        num_uncertain = int(self.importance_sample_ratio * self.num_points)
        chosen = certainty.topk(num_uncertain, dim=1, largest=False).indices
        uncertain = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        random = self.rand((count, self.num_points - num_uncertain, 2), device=masks.device)
        return torch.cat([uncertain, random], dim=1)

    @staticmethod
    def mean_number_of_masks(targets: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """Objects per process, at least 1: the mask losses' common denominator."""
        count = sum(len(target["labels"]) for target in targets)
        # Filled on the device, not copied to it: a copy would wait.
        return mean_over_processes(torch.full((), float(count), device=device)).clamp(min=1)

    def accumulation_scales(
        self, num_objects: Sequence[Sequence[int]], num_queries: int
    ) -> list[dict[str, float]]:
        """What turns the mean of several batches' losses into the loss of one large batch.

        The losses of masks are divided by the objects of a batch, that of classes by the class weights
        of all its queries.

        Args:
            num_objects: of every image of every batch.
            num_queries: Q.

        Returns:
            For every batch, beginning of a loss's name -> factor.
        """
        device = self.empty_weight.device
        counts = torch.tensor([float(sum(batch)) for batch in num_objects], device=device)
        no_object_weight = self.empty_weight[-1].item()
        class_weights = []
        for batch in num_objects:
            matched = sum(min(count, num_queries) for count in batch)
            unmatched = len(batch) * num_queries - matched
            class_weights.append(matched + no_object_weight * unmatched)
        mean = sum(class_weights) / len(class_weights)
        return [
            {"loss_mask": mask, "loss_dice": mask, "loss_ce": weight / mean}
            for mask, weight in zip(accumulation_weights(counts), class_weights, strict=True)
        ]
