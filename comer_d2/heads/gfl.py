"""GFL: a class with its quality, and the distances to a box's sides as distributions."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .box_coding import decode_distances, encode_distances
from .box_overlap import paired_generalized_iou, paired_iou
from .conv_subnet import conv_subnet, flatten_levels, predictor
from .dense_anchors import anchor_centers, square_anchors
from .dense_inference import DecodedLevel
from .dense_targets import dense_targets
from .distributed import mean_over_processes
from .generalized_focal_loss import distribution_focal_loss, quality_focal_loss


class GFLPredictions(NamedTuple):
    """Predictions of one level.

    Attributes:
        logits: (B, K, H, W), of the class together with the IoU of the box.
        distances: (B, 4 * (n + 1), H, W): for left, top, right and bottom, logits of the distances
            0 to n, in strides.
    """

    logits: Tensor
    distances: Tensor


class GFLHead(nn.Module):
    """Two subnets on all levels of a pyramid, and their losses.

    Source: arXiv 2006.04388, with the assignment of ATSS.

    Args:
        num_classes: classes K.
        in_channels: of the maps.
        channels: of the subnets.
        num_convs: of each subnet.
        num_groups: of the group normalization.
        strides: of the maps, pixels, finest first.
        anchor_scale: side of the anchors in strides; they only serve the assignment.
        reg_max: the largest distance n, in strides.
        top_k: candidates per object and level in the assignment.
        box_weight: weight of the GIoU loss.
        distribution_weight: weight of the distribution focal loss.
        prior_prob: score at which all classes start.

    Raises:
        ValueError: for `top_k` or `reg_max` below 1.
    """

    values: Tensor

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
        reg_max: int = 16,
        top_k: int = 9,
        box_weight: float = 2.0,
        distribution_weight: float = 0.25,
        prior_prob: float = 0.01,
    ) -> None:
        super().__init__()
        if top_k < 1:
            raise ValueError(
                f"top_k must be at least 1, got {top_k}: no anchor would learn an object"
            )
        if reg_max < 1:
            raise ValueError(f"reg_max must be at least 1, got {reg_max}: every box would be empty")
        self.num_classes = num_classes
        self.strides = tuple(strides)
        self.anchor_scale = anchor_scale
        self.reg_max = reg_max
        self.top_k = top_k
        self.box_weight = box_weight
        self.distribution_weight = distribution_weight
        self.cls_subnet = conv_subnet(in_channels, channels, num_convs, num_groups)
        self.bbox_subnet = conv_subnet(in_channels, channels, num_convs, num_groups)
        self.cls_score = predictor(channels, num_classes, bias=-math.log(1 / prior_prob - 1))
        self.bbox_pred = predictor(channels, 4 * (reg_max + 1))
        self.scales = nn.ParameterList(nn.Parameter(torch.ones(())) for _ in self.strides)
        self.register_buffer("values", torch.arange(reg_max + 1).float(), persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> list[GFLPredictions]:
        """Feature maps -> predictions.

        Args:
            maps: of every level, (B, in_channels, H, W).

        Returns:
            The predictions of every level.
        """
        return [
            GFLPredictions(
                self.cls_score(self.cls_subnet(x)), self.bbox_pred(self.bbox_subnet(x)) * scale
            )
            for x, scale in zip(maps, self.scales, strict=True)
        ]

    def losses(
        self,
        predictions: Sequence[GFLPredictions],
        targets: Sequence[dict[str, Tensor]],
        image_sizes: Sequence[tuple[int, int]],
    ) -> dict[str, Tensor]:
        """Losses of a batch.

        The box losses are weighted by the best score of their anchor.

        Args:
            predictions: of every level.
            targets: of every image `boxes` (n, 4), x1, y1, x2, y2 in pixels, and `labels` (n,).
            image_sizes: (height, width) of every image, pixels; what the batch is padded with
                beyond it learns nothing.

        Returns:
            `loss_cls`, `loss_box_reg` and `loss_dfl`.
        """
        anchors = self._anchors(predictions)
        learnt = dense_targets(
            anchors,
            self.strides,
            targets,
            image_sizes,
            num_classes=self.num_classes,
            top_k=self.top_k,
        )
        image, anchor = learnt.positives
        logits, distances = (flatten_levels(maps) for maps in zip(*predictions))
        with torch.autocast(logits.device.type, enabled=False):
            # Boxes and distances in strides.
            stride = torch.cat(
                [
                    level.new_full((level.shape[0] * level.shape[1], 1), stride)
                    for level, stride in zip(anchors, self.strides, strict=True)
                ]
            )[anchor]
            own = torch.cat([level.flatten(0, 1) for level in anchors])[anchor]
            points = anchor_centers(own) / stride
            objects = learnt.boxes[image, anchor] / stride
            distributions = distances[image, anchor].unflatten(-1, (4, -1))
            boxes = decode_distances(self.expected(distributions), points)

            score = logits[image, anchor].detach().sigmoid().amax(dim=-1)
            loss_box = ((1 - paired_generalized_iou(boxes, objects)) * score).sum()
            # Below the largest value: every target has a whole number above it.
            wanted = encode_distances(objects, points).clamp(0, self.reg_max - 0.1)
            loss_dfl = distribution_focal_loss(distributions, wanted).mean(dim=-1)
            loss_dfl = (loss_dfl * score).sum()

            quality = torch.zeros_like(logits)
            labels = learnt.labels[image, anchor]
            quality[image, anchor, labels] = paired_iou(boxes.detach(), objects)
            loss_cls = quality_focal_loss(logits, quality)
            loss_cls = (loss_cls * learnt.inside[..., None]).sum()

            count = mean_over_processes(learnt.num_positives)
            weight = mean_over_processes(score.sum()).clamp(min=1)
        return {
            "loss_cls": loss_cls / count,
            "loss_box_reg": self.box_weight * loss_box / weight,
            "loss_dfl": self.distribution_weight * loss_dfl / weight,
        }

    def decode(self, predictions: Sequence[GFLPredictions]) -> list[DecodedLevel]:
        """Predictions of every level -> boxes and scores."""
        levels = []
        for level, own, stride in zip(
            predictions, self._anchors(predictions), self.strides, strict=True
        ):
            logits, distances = (flatten_levels([x]) for x in level)
            distances = self.expected(distances.unflatten(-1, (4, -1))) * stride
            boxes = decode_distances(distances, anchor_centers(own).flatten(0, 1))
            levels.append(DecodedLevel(boxes, logits.sigmoid(), None))
        return levels

    def expected(self, distributions: Tensor) -> Tensor:
        """Logits (..., n + 1) -> the expected distance (...), in strides."""
        # Not a matrix product: autocast would compute it in half precision, pixels off.
        return (distributions.softmax(dim=-1) * self.values).sum(dim=-1)

    def _anchors(self, predictions: Sequence[GFLPredictions]) -> list[Tensor]:
        return square_anchors([p.logits for p in predictions], self.strides, self.anchor_scale)
