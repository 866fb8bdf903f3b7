"""R-CNN models on images of any size."""

from typing import Any

from detectron2.modeling import GeneralizedRCNN as Detectron2GeneralizedRCNN
from detectron2.modeling.roi_heads import FastRCNNOutputLayers
from detectron2.structures import ImageList
from torch import Tensor

from .images import prepare_images


class BoxPredictor(FastRCNNOutputLayers):
    """Detectron2's box predictor, whose logits and deltas are float32 under autocast as well.

    In half precision many scores would be equal, so that chance ranked their boxes.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of boxes (R, C): logits (R, K + 1) and deltas (R, 4 K), or (R, 4) if all classes share them."""
        logits, deltas = super().forward(x)
        return logits.float(), deltas.float()


class GeneralizedRCNN(Detectron2GeneralizedRCNN):
    """Detectron2's GeneralizedRCNN, which does not cut images larger than ``square_pad``."""

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """`image` (3, h, w) of every record -> the normalised, padded batch."""
        return prepare_images(batched_inputs, self.backbone, self.pixel_mean, self.pixel_std)
