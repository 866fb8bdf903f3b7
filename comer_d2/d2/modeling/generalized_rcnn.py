"""R-CNN models on images of any size."""

from typing import Any

from detectron2.modeling import GeneralizedRCNN as Detectron2GeneralizedRCNN
from detectron2.structures import ImageList

from .images import prepare_images


class GeneralizedRCNN(Detectron2GeneralizedRCNN):
    """Detectron2's GeneralizedRCNN, which does not cut images larger than ``square_pad``."""

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """`image` (3, h, w) of every record -> the normalised, padded batch."""
        return prepare_images(batched_inputs, self.backbone, self.pixel_mean, self.pixel_std)
