"""Dense detectors: a head that predicts a box for every cell of a pyramid."""

from collections.abc import Sequence
from typing import Any

from detectron2.modeling import Backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector as Detectron2Detector
from detectron2.structures import Boxes, ImageList, Instances
from fvcore.nn import weight_init
from torch import Tensor, nn

from ...heads.dense_inference import detect
from ...layers.strided_conv import StridedConv2d
from .images import prepare_images


class DenseDetector(Detectron2Detector):
    """Detectron2's dense detector with a head that brings its losses and its decoding.

    Args:
        backbone: a pyramid, such as Detectron2's FPN with :class:`LastLevelP6P7`.
        head: feature maps -> predictions of every level, with `strides`, `losses` and `decode`; such
            as :class:`comer_d2.heads.atss.ATSSHead` or :class:`comer_d2.heads.gfl.GFLHead`.
        head_in_features: the maps it reads, finest first.
        pixel_mean: per channel.
        pixel_std: per channel.
        test_score_thresh: of the candidates' classes.
        test_topk_candidates: of every level, before suppression.
        test_nms_thresh: IoU above which the better box of a class suppresses another.
        max_detections_per_image: after it.
        input_format: the order of channels that the model is trained on.

    Raises:
        ValueError: if the maps are not those that the head's strides are of, or for a limit that would
            leave no detections.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: Sequence[str] = ("p3", "p4", "p5", "p6", "p7"),
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        input_format: str = "RGB",
    ) -> None:
        given = {name: shape.stride for name, shape in backbone.output_shape().items()}
        if [given.get(name) for name in head_in_features] != list(head.strides):
            raise ValueError(
                f"head_in_features {list(head_in_features)} must be maps of the head's strides "
                f"{list(head.strides)}; the backbone's maps and their strides are {given}"
            )
        if (
            not (0 <= test_score_thresh < 1 and 0 <= test_nms_thresh <= 1)
            or min(test_topk_candidates, max_detections_per_image) < 1
        ):
            raise ValueError(
                "detections need test_score_thresh in [0, 1), test_nms_thresh in [0, 1], and "
                "test_topk_candidates and max_detections_per_image from 1 on, got "
                f"{test_score_thresh}, {test_nms_thresh}, {test_topk_candidates} and "
                f"{max_detections_per_image}"
            )
        super().__init__(
            backbone, head, list(head_in_features), pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.input_format = input_format

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """`image` (3, h, w) of every record -> the normalised, padded batch."""
        return prepare_images(batched_inputs, self.backbone, self.pixel_mean, self.pixel_std)

    def forward_training(
        self,
        images: ImageList,
        features: list[Tensor],
        predictions: list[Any],
        gt_instances: list[Instances],
    ) -> dict[str, Tensor]:
        """The head's losses. What the backbone has to pad an image with belongs to the image."""
        divisor = max(self.backbone.size_divisibility, 1)
        sizes = [
            tuple(-(-side // divisor) * divisor for side in size) for size in images.image_sizes
        ]
        targets = [
            {"boxes": instances.gt_boxes.tensor, "labels": instances.gt_classes}
            for instances in gt_instances
        ]
        return self.head.losses(predictions, targets, sizes)

    def forward_inference(
        self, images: ImageList, features: list[Tensor], predictions: list[Any]
    ) -> list[Instances]:
        """Of every image `pred_boxes`, `scores` and `pred_classes`, best first."""
        levels = self.head.decode(predictions)
        results = []
        for i, size in enumerate(images.image_sizes):
            found = detect(
                [level.of_image(i) for level in levels],
                size,
                score_threshold=self.test_score_thresh,
                candidates_per_level=self.test_topk_candidates,
                nms_threshold=self.test_nms_thresh,
                max_detections=self.max_detections_per_image,
            )
            taken = found.classes[0] >= 0
            results.append(
                Instances(
                    tuple(size),
                    pred_boxes=Boxes(found.boxes[0, taken]),
                    scores=found.scores[0, taken],
                    pred_classes=found.classes[0, taken],
                )
            )
        return results


class LastLevelP6P7(nn.Module):
    """P6 and P7, each by a strided convolution of the level before it.

    Detectron2's, for RetinaNet, has a ReLU in front of P7's; ATSS and GFL are published without.

    Args:
        channels: of all levels.
        in_feature: the level that P6 is made of.
    """

    num_levels = 2  # as FPN asks

    def __init__(self, channels: int, in_feature: str = "p5") -> None:
        super().__init__()
        self.in_feature = in_feature
        self.p6 = StridedConv2d(channels, channels, 3, stride=2, padding=1)
        self.p7 = StridedConv2d(channels, channels, 3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            weight_init.c2_xavier_fill(conv)

    def forward(self, p5: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> P6, P7 of half and a quarter of its sides, rounded up."""
        p6 = self.p6(p5)
        return [p6, self.p7(p6)]
