"""ATSS, GFL, DINO and Co-DINO for torch.export."""

from torch import Tensor, nn

from ...heads.dense_inference import detect
from ...heads.detections import Detections
from ...heads.dino.detections import best_pairs
from ..modeling.dense_detector import DenseDetector
from ..modeling.dino import DINO
from .images import Images


class TraceableDense(nn.Module):
    """A dense detector's inference.

    Args:
        model: ATSS or GFL.
    """

    def __init__(self, model: DenseDetector) -> None:
        super().__init__()
        self.images = Images(model)
        self.model = model

    def forward(self, images: Tensor) -> Detections:
        """Pixels (B, 3, H, W) -> `max_detections_per_image` places for detections."""
        model = self.model
        features = model.backbone(self.images(images))
        predictions = model.head([features[name] for name in model.head_in_features])
        return detect(
            model.head.decode(predictions),
            images.shape[-2:],
            score_threshold=model.test_score_thresh,
            candidates_per_level=model.test_topk_candidates,
            nms_threshold=model.test_nms_thresh,
            max_detections=model.max_detections_per_image,
        )


class TraceableDINO(nn.Module):
    """DINO's inference; of Co-DINO the same, its collaborative heads take no part.

    Args:
        model: without soft suppression.

    Raises:
        ValueError: soft suppression takes one box after the other, by scores that change.
    """

    def __init__(self, model: DINO) -> None:
        super().__init__()
        if model.soft_nms_threshold is not None:
            raise ValueError(
                f"soft suppression does not export: set soft_nms_threshold=None in the model, got "
                f"{model.soft_nms_threshold}, and call comer_d2.heads.soft_nms on what comes out"
            )
        self.images = Images(model)
        self.backbone = model.backbone
        self.head = model.head
        self.max_detections_per_image = model.max_detections_per_image

    def forward(self, images: Tensor) -> Detections:
        """Pixels (B, 3, H, W) -> `max_detections_per_image` pairs of query and class, best first."""
        padded, size = self.images(images), images.shape[-2:]
        sizes = [size] * len(images) if self.images.square else None
        outputs = self.head(self.backbone(padded), padded.shape[-2:], sizes)
        (last,) = outputs.layers
        return best_pairs(last, size, self.max_detections_per_image)
