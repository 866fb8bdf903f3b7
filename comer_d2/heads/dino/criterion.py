"""DINO's losses: of matched queries, of proposals, and of denoising queries."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, sigmoid_focal_loss

from ..box_overlap import paired_generalized_iou, paired_iou
from ..distributed import mean_over_processes
from ..generalized_focal_loss import quality_focal_loss
from ..hungarian import Matches, matched_pairs
from .head import DINOOutputs
from .matcher import BoxMatcher
from .predictors import Prediction


class DINOCriterion(nn.Module):
    """Class, L1 and generalized IoU losses of every layer's prediction.

    Source: Sec. 3 of arXiv 2203.03605; the quality focal loss is Sec. 3.2 of arXiv 2006.04388 (GFL),
    used so by Co-DETR.

    Args:
        matcher: assigns objects to queries.
        class_weight: weight of the class loss.
        bbox_weight: weight of the L1 loss of (cx, cy, w, h).
        giou_weight: weight of 1 minus the generalized IoU.
        quality: the class to be predicted is the IoU of the query's box, by quality focal loss;
            otherwise it is 1, by focal loss.
        alpha: of focal loss.
        gamma: of both.
    """

    def __init__(
        self,
        *,
        matcher: BoxMatcher,
        class_weight: float = 1.0,
        bbox_weight: float = 5.0,
        giou_weight: float = 2.0,
        quality: bool = False,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ) -> None:
        super().__init__()
        self.matcher = matcher
        self.weights = {
            "loss_class": class_weight,
            "loss_bbox": bbox_weight,
            "loss_giou": giou_weight,
        }
        self.quality = quality
        self.alpha = alpha
        self.gamma = gamma

    def forward(
        self, outputs: DINOOutputs, targets: Sequence[dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Weighted losses.

        Args:
            outputs: of the head in training.
            targets: of every image ``labels`` (n,) and ``boxes`` (n, 4) as (cx, cy, w, h); [0, 1] is
                the image; and, for messages, its ``name``.

        Returns:
            ``loss_class``, ``loss_bbox``, ``loss_giou`` of the last layer; with ``_0``, ``_1``, ... of
            the layers before; with ``_enc`` of the proposals; with ``_dn``, ``_dn_0``, ... of the
            denoising queries.
        """
        of_matching = {"_enc": outputs.proposals} | of_layers(outputs.layers)
        matches = self.matcher(list(of_matching.values()), targets)
        # Denoising queries know their objects: meanwhile the costs are on their way to the CPU.
        assert outputs.denoising is not None  # as the head gives it where it is given targets
        known = outputs.denoising.matches([len(target["labels"]) for target in targets])
        denoised: dict[str, Tensor] = {}
        for suffix, prediction in of_layers(outputs.denoised, "_dn").items():
            denoised |= self.losses(prediction, targets, known, suffix)
        losses: dict[str, Tensor] = {}
        for (suffix, prediction), found in zip(of_matching.items(), matches, strict=True):
            losses |= self.losses(prediction, targets, found, suffix)
        return losses | denoised

    def losses(
        self,
        prediction: Prediction,
        targets: Sequence[dict[str, Tensor]],
        matches: Matches,
        suffix: str = "",
    ) -> dict[str, Tensor]:
        """Weighted losses of one prediction.

        Each is a sum over the batch, divided by the matched objects: their mean over all processes,
        at least 1.

        Args:
            prediction: of Q queries.
            targets: ``labels`` (n,) and ``boxes`` (n, 4) of every image.
            matches: of every image its matched queries and their objects; all other queries are to
                predict no class.
            suffix: of the losses' names.
        """
        image, query, object_ = matched_pairs(matches, prediction.logits.device)
        at = (image, query)
        counts = [len(queries) for queries, _ in matches]
        pairs = list(zip(targets, object_.split(counts), strict=True))
        labels = torch.cat([target["labels"][objects] for target, objects in pairs])
        wanted = torch.cat([target["boxes"][objects] for target, objects in pairs]).float()
        boxes = prediction.boxes[at].float()
        corners, wanted_corners = (box_convert(b, "cxcywh", "xyxy") for b in (boxes, wanted))

        scores = torch.zeros_like(prediction.logits, dtype=torch.float32)
        scores[(*at, labels)] = (
            paired_iou(corners.detach(), wanted_corners) if self.quality else 1.0
        )
        sums = {
            "loss_class": self.class_loss(prediction.logits.float(), scores),
            "loss_bbox": F.l1_loss(boxes, wanted, reduction="sum"),
            "loss_giou": (1 - paired_generalized_iou(corners, wanted_corners)).sum(),
        }
        count = mean_over_processes(boxes.new_full((), len(labels))).clamp(min=1)
        return {name + suffix: loss / count * self.weights[name] for name, loss in sums.items()}

    def class_loss(self, logits: Tensor, scores: Tensor) -> Tensor:
        """Sum of the focal losses of logits (B, Q, K) that are to become scores (B, Q, K)."""
        if not self.quality:
            return sigmoid_focal_loss(logits, scores, self.alpha, self.gamma, reduction="sum")
        return quality_focal_loss(logits, scores, beta=self.gamma).sum()


def of_layers(predictions: Sequence[Prediction], suffix: str = "") -> dict[str, Prediction]:
    """Suffixes of the layers' losses: the last one has no number."""
    *before, last = predictions
    return {suffix: last} | {f"{suffix}_{i}": prediction for i, prediction in enumerate(before)}
