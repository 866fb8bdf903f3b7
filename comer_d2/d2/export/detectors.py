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
        images: what is done to its images.
    """

    def __init__(self, model: DenseDetector, images: Images) -> None:
        super().__init__()
        self.images = images
        self.model = model

    def forward(self, images: Tensor) -> Detections:
        """Pixels (B, 3, H, W) -> `max_detections_per_image` places for detections."""
        model = self.model
        prepared = self.images(images)
        features = model.backbone(prepared.pixels)
        predictions = model.head([features[name] for name in model.head_in_features])
        found = detect(
            model.head.decode(predictions),
            prepared.size,
            score_threshold=model.test_score_thresh,
            candidates_per_level=model.test_topk_candidates,
            nms_threshold=model.test_nms_thresh,
            max_detections=model.max_detections_per_image,
        )
        return found._replace(boxes=prepared.boxes(found.boxes))


class TraceableDINO(nn.Module):
    """DINO's inference; of Co-DINO the same, its collaborative heads take no part.

    Args:
        model: without soft suppression.
        images: what is done to its images.

    Raises:
        ValueError: soft suppression takes one box after the other, by scores that change.
    """

    def __init__(self, model: DINO, images: Images) -> None:
        super().__init__()
        if model.soft_nms_threshold is not None:
            raise ValueError(
                f"soft suppression ({model.soft_nms_threshold}) does not export: leave it out, with --override "
                "model.soft_nms_threshold=null, and call comer_d2.heads.soft_nms.soft_nms on what comes out"
            )
        self.images = images
        self.backbone = model.backbone
        self.head = model.head
        self.max_detections_per_image = model.max_detections_per_image

    def forward(self, images: Tensor) -> Detections:
        """Pixels (B, 3, H, W) -> `max_detections_per_image` pairs of query and class, best first."""
        prepared = self.images(images)
        size = prepared.size
        sizes = [size] if self.images.pads else None  # one for all: they are of one size
        outputs = self.head(self.backbone(prepared.pixels), prepared.padded, sizes)
        (last,) = outputs.layers
        found = best_pairs(last, size, self.max_detections_per_image)
        return found._replace(boxes=prepared.boxes(found.boxes))
