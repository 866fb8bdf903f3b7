"""DINO as a Detectron2 model."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.modeling import Backbone
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn
from torchvision.ops import box_convert

from ...heads.dino.detections import best_pairs
from ...heads.dino.predictors import Prediction
from ...heads.distributed import accumulation_weights
from ...heads.soft_nms import soft_nms
from .images import prepare_images


class DINO(nn.Module):
    """A backbone, DINO's head and its criterion, with Detectron2's inputs and outputs.

    Source: arXiv 2203.03605; Co-DINO is of arXiv 2211.12860.

    Args:
        backbone: gives the maps that the head's neck reads.
        head: feature maps -> predictions of all queries.
        criterion: (the head's outputs, targets) -> weighted losses.
        pixel_mean: per channel.
        pixel_std: per channel.
        collaborative: (images, instances, the head's outputs, its decoder, the criterion) -> more
            losses; makes this Co-DINO, and has no part in prediction.
        max_detections_per_image: pairs of query and class that are kept.
        soft_nms_threshold: IoU from which on a box lowers the scores of worse ones of its class;
            None: all scores stay.
        input_format: the order of channels that the model is trained on.

    Raises:
        ValueError: the backbone's maps are not those that the head reads, the collaborative heads'
            strides are not the maps', or there would be no detections.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        criterion: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        collaborative: nn.Module | None = None,
        max_detections_per_image: int = 300,
        soft_nms_threshold: float | None = None,
        input_format: str = "RGB",
    ) -> None:
        super().__init__()
        neck, given = head.neck, backbone.output_shape()
        channels = {name: shape.channels for name, shape in given.items()}
        if [channels.get(name) for name in neck.in_features] != list(neck.in_channels):
            raise ValueError(
                f"the neck reads in_features {list(neck.in_features)} of in_channels "
                f"{list(neck.in_channels)}; the backbone's maps and their channels are {channels}"
            )
        if max_detections_per_image < 1:
            raise ValueError(
                f"max_detections_per_image must be at least 1, got {max_detections_per_image}"
            )
        if soft_nms_threshold is not None and not 0 < soft_nms_threshold <= 1:
            raise ValueError(
                f"soft_nms_threshold must be an IoU in (0, 1] or None, got {soft_nms_threshold}"
            )
        if collaborative is not None:
            strides = [given[name].stride for name in neck.in_features]
            while len(strides) <= neck.num_levels:  # the collaborative heads have one map more
                strides.append(2 * strides[-1])
            collaborative.check_strides(strides)
        self.backbone = backbone
        self.head = head
        self.criterion = criterion
        self.collaborative = collaborative
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.max_detections_per_image = max_detections_per_image
        self.soft_nms_threshold = soft_nms_threshold
        self.input_format = input_format

    @property
    def device(self) -> torch.device:
        """Where the model is, and its images go."""
        return self.pixel_mean.device

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Images and objects -> losses in training; images -> detections otherwise.

        Args:
            batched_inputs: `image` (3, h, w); in training `instances` with `gt_boxes` and
                `gt_classes`; otherwise optionally `height` and `width` of the output.

        Returns:
            A dict of weighted losses, or for every image a dict with `instances`: `pred_boxes`,
            `scores` and `pred_classes`, best first.
        """
        images = prepare_images(batched_inputs, self.backbone, self.pixel_mean, self.pixel_std)
        features = self.backbone(images.tensor)
        if self.training:
            return self.losses(images, features, batched_inputs)
        outputs = self.head(features, images.tensor.shape[-2:], images.image_sizes)
        (last,) = outputs.layers
        return [
            {"instances": self.detections(Prediction(*of_image), size, record)}
            for *of_image, size, record in zip(
                *last, images.image_sizes, batched_inputs, strict=True
            )
        ]

    def loss_scales(self, batches: list[list[dict[str, Any]]]) -> list[dict[str, float]]:
        """For gradient accumulation: DINO's losses are divided by the objects of a batch.

        So are those of Co-DINO's decoder, about; its other heads' positives are not known before, and
        their losses are means over the batches.
        """
        counts = [
            sum(min(len(record["instances"]), self.head.num_queries) for record in batch)
            for batch in batches
        ]
        factors = accumulation_weights(torch.tensor(counts, device=self.device).float())
        return [dict.fromkeys(self.criterion.weights, factor) for factor in factors]

    def losses(
        self, images: ImageList, features: dict[str, Tensor], batched_inputs: list[dict[str, Any]]
    ) -> dict[str, Tensor]:
        """Weighted losses of a batch."""
        instances = [record["instances"].to(self.device) for record in batched_inputs]
        targets = [target_of(*pair) for pair in zip(instances, batched_inputs, strict=True)]
        outputs = self.head(features, images.tensor.shape[-2:], images.image_sizes, targets)
        losses = self.criterion(outputs, targets)
        if self.collaborative is not None:
            losses |= self.collaborative(
                images, instances, outputs, self.head.decoder, self.criterion
            )
        return losses

    def detections(
        self, prediction: Prediction, image_size: tuple[int, int], record: dict[str, Any]
    ) -> Instances:
        """The best pairs of query and class of one image.

        Args:
            prediction: logits (Q, K) and boxes (Q, 4).
            image_size: (h, w) of the image that was seen, in pixels.
            record: `height` and `width` of the output.
        """
        batch = Prediction(prediction.logits[None], prediction.boxes[None])
        best = best_pairs(batch, image_size, self.max_detections_per_image)
        found = Instances(
            image_size,
            pred_boxes=Boxes(best.boxes[0]),
            scores=best.scores[0],
            pred_classes=best.classes[0],
        )
        if self.soft_nms_threshold is not None:
            keep, scores = soft_nms(
                found.pred_boxes.tensor,
                found.scores,
                found.pred_classes,
                iou_threshold=self.soft_nms_threshold,
            )
            found = found[keep]
            found.scores = scores
        output_size = record.get("height", image_size[0]), record.get("width", image_size[1])
        return detector_postprocess(found, *output_size)


def target_of(instances: Instances, record: dict[str, Any]) -> dict[str, Any]:
    """`labels` (n,), `boxes` (n, 4) as (cx, cy, w, h) in [0, 1], and the image's `name`."""
    height, width = instances.image_size
    boxes = box_convert(instances.gt_boxes.tensor, "xyxy", "cxcywh")
    target = {
        "labels": instances.gt_classes,
        "boxes": boxes / boxes.new_tensor([width, height, width, height]),
    }
    return target | ({"name": record["file_name"]} if "file_name" in record else {})
