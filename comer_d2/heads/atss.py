"""ATSS: a class, a box and its centerness for the anchor of every cell."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from .box_coding import decode_deltas, encode_distances
from .box_overlap import paired_generalized_iou
from .conv_subnet import conv_subnet, flatten_levels, predictor
from .dense_anchors import anchor_centers, square_anchors
from .dense_inference import DecodedLevel
from .dense_targets import DenseTargets, dense_targets
from .distributed import mean_over_processes


class ATSSPredictions(NamedTuple):
    """Predictions of one level.

    Attributes:
        logits: (B, K, H, W).
        deltas: (B, 4, H, W), of the anchors, see `decode_deltas`.
        centerness: (B, 1, H, W), logits.
    """

    logits: Tensor
    deltas: Tensor
    centerness: Tensor


class ATSSHead(nn.Module):
    """Two subnets on all levels of a pyramid, and their losses.

    Source: arXiv 1912.02424; the losses are focal loss (arXiv 1708.02002), GIoU (arXiv 1902.09630)
    weighted by the centerness, and the centerness' cross entropy (Sec. 3.2 of arXiv 1904.01355).

    Args:
        num_classes: classes K.
        in_channels: of the maps.
        channels: of the subnets.
        num_convs: of each subnet.
        num_groups: of the group normalization.
        strides: of the maps, pixels, finest first.
        anchor_scale: side of the anchors in strides.
        delta_scales: what the predicted deltas are multiplied with.
        top_k: candidates per object and level in the assignment.
        box_weight: weight of the GIoU loss.
        focal_alpha: weight of the positives in the focal loss.
        focal_gamma: exponent of the focal loss.
        prior_prob: score at which all classes start.

    Raises:
        ValueError: for `top_k` below 1.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 256,
        channels: int = 256,
        num_convs: int = 4,
        num_groups: int = 32,
        strides: Sequence[int] = (8, 16, 32, 64, 128),
        anchor_scale: float = 8.0,
        delta_scales: Sequence[float] = (0.1, 0.1, 0.2, 0.2),
        top_k: int = 9,
        box_weight: float = 2.0,
        focal_alpha: float = 0.25,
        focal_gamma: float = 2.0,
        prior_prob: float = 0.01,
    ) -> None:
        super().__init__()
        if top_k < 1:
            raise ValueError(
                f"top_k must be at least 1, got {top_k}: no anchor would learn an object"
            )
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.anchor_scale = anchor_scale
        self.delta_scales = tuple(delta_scales)
        self.top_k = top_k
        self.box_weight = box_weight
        self.focal_alpha = focal_alpha
        self.focal_gamma = focal_gamma
        self.cls_subnet = conv_subnet(in_channels, channels, num_convs, num_groups)
        self.bbox_subnet = conv_subnet(in_channels, channels, num_convs, num_groups)
        self.cls_score = predictor(channels, num_classes, bias=-math.log(1 / prior_prob - 1))
        self.bbox_pred = predictor(channels, 4)
        self.centerness = predictor(channels, 1)
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in self.strides)

    def forward(self, maps: Sequence[Tensor]) -> list[ATSSPredictions]:
        """Feature maps -> predictions.

        Args:
            maps: of every level, (B, in_channels, H, W).

        Returns:
            The predictions of every level.
        """
        predictions = []
        for x, scale in zip(maps, self.scales, strict=True):
            boxes = self.bbox_subnet(x)
            predictions.append(
                ATSSPredictions(
                    self.cls_score(self.cls_subnet(x)),
                    self.bbox_pred(boxes) * scale,
                    self.centerness(boxes),
                )
            )
        return predictions

    def losses(
        self,
        predictions: Sequence[ATSSPredictions],
        targets: Sequence[dict[str, Tensor]],
        image_sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        Args:
            predictions: of every level.
            targets: of every image `boxes` (n, 4), x1, y1, x2, y2 in pixels, and `labels` (n,).
            image_sizes: (height, width) of every image, pixels; what the batch is padded with
                beyond it learns nothing.

        Returns:
            `loss_cls`, `loss_box_reg` and `loss_centerness`.
        """
        return self.assigned_losses(predictions, self.assign(predictions, targets, image_sizes))

    def assign(
        self,
        predictions: Sequence[ATSSPredictions],
        targets: Sequence[dict[str, Tensor]],
        image_sizes: Sequence[tuple[int, int]],
    ) -> DenseTargets:
        """What the anchors are to learn; arguments as of :meth:`losses`."""
        return dense_targets(
            self._anchors(predictions),
            self.strides,
            targets,
            image_sizes,
            num_classes=self.num_classes,
            top_k=self.top_k,
        )

    def assigned_losses(
        self, predictions: Sequence[ATSSPredictions], learnt: DenseTargets
    ) -> dict[str, Tensor]:
        """:meth:`losses` of anchors that are assigned already."""
        anchors = self.anchors(predictions)
        image, anchor = learnt.positives
        logits, deltas, centerness = (flatten_levels(maps) for maps in zip(*predictions))
        with torch.autocast(logits.device.type, enabled=False):
            wanted = F.one_hot(learnt.labels, self.num_classes + 1)[..., :-1].to(logits)
            loss_cls = sigmoid_focal_loss(
                logits, wanted, alpha=self.focal_alpha, gamma=self.focal_gamma
            )
            loss_cls = (loss_cls * learnt.inside[..., None]).sum()

            own = anchors[anchor]
            objects = learnt.boxes[image, anchor]
            wanted = centerness_of(anchor_centers(own), objects)
            loss_centerness = F.binary_cross_entropy_with_logits(
                centerness[image, anchor, 0], wanted, reduction="sum"
            )
            boxes = decode_deltas(deltas[image, anchor], own, self.delta_scales)
            loss_box = ((1 - paired_generalized_iou(boxes, objects)) * wanted).sum()

            count = mean_over_processes(learnt.num_positives)
            weight = mean_over_processes(wanted.sum()).clamp(min=1)
        return {
            "loss_cls": loss_cls / count,
            "loss_box_reg": self.box_weight * loss_box / weight,
            "loss_centerness": loss_centerness / count,
        }

    def decode(self, predictions: Sequence[ATSSPredictions]) -> list[DecodedLevel]:
        """Predictions of every level -> boxes and scores, the centerness as their quality."""
        levels = []
        for level, own in zip(predictions, self._anchors(predictions), strict=True):
            logits, deltas, centerness = (flatten_levels([x]) for x in level)
            boxes = decode_deltas(deltas, own.flatten(0, 1), self.delta_scales)
            levels.append(DecodedLevel(boxes, logits.sigmoid(), centerness[..., 0].sigmoid()))
        return levels

    def anchors(self, predictions: Sequence[ATSSPredictions]) -> Tensor:
        """(A, 4) x1, y1, x2, y2 in pixels, those of all levels."""
        return torch.cat([level.flatten(0, 1) for level in self._anchors(predictions)])

    def _anchors(self, predictions: Sequence[ATSSPredictions]) -> list[Tensor]:
        return square_anchors([p.logits for p in predictions], self.strides, self.anchor_scale)


def centerness_of(points: Tensor, boxes: Tensor) -> Tensor:
    """How near a point is to the middle of a box that it is in.

    ``sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))``, of the distances to the four sides.

    Source: Eq. 3 of arXiv 1904.01355.

    Args:
        points: (n, 2).
        boxes: (n, 4).

    Returns:
        (n,) in [0, 1].
    """
    left, top, right, bottom = encode_distances(boxes, points).unbind(dim=-1)
    horizontal = torch.minimum(left, right) / torch.maximum(left, right)
    vertical = torch.minimum(top, bottom) / torch.maximum(top, bottom)
    return (horizontal * vertical).sqrt()
