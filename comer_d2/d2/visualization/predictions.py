"""Pictures of what a model finds while it is being evaluated."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.events import get_event_storage, has_event_storage
from PIL import Image

from ..data.images import read_image
from .drawing import draw_instances, draw_label_map, draw_segments

DRAWN = {"panoptic_seg", "instances", "sem_seg"}
LARGEST = 640  # pixels of a picture's longer side


class PredictionPictures(DatasetEvaluator):
    """Draws the first predictions of an evaluation into Detectron2's event storage, for its writers.

    It measures nothing. To be added to an evaluation's evaluators in one process. What has no picture
    (proposals, a dataset without class names) is left out.

    Args:
        dataset_name: the registered dataset, whose class names are written.
        count: images.
        threshold: objects below this score are left out.
    """

    def __init__(self, dataset_name: str, *, count: int = 4, threshold: float = 0.5) -> None:
        self.dataset_name = dataset_name
        self.count = count
        self.threshold = threshold
        self._pictures: list[Image.Image] = []

    def reset(self) -> None:
        self._pictures = []

    def process(self, inputs: Sequence[dict[str, Any]], outputs: Sequence[dict[str, Any]]) -> None:
        for record, output in zip(inputs, outputs):
            if len(self._pictures) == self.count:
                return
            metadata = MetadataCatalog.get(self.dataset_name)
            named = metadata.get("stuff_classes") or metadata.get("thing_classes")
            if named and DRAWN & output.keys():
                image = read_image(record["file_name"], "RGB")
                self._pictures.append(self._draw(image, output))

    def evaluate(self) -> None:
        """Hand the pictures on, as "predictions/0" and so on; nothing is returned."""
        if not has_event_storage():
            return
        for number, picture in enumerate(self._pictures):
            get_event_storage().put_image(
                f"predictions/{number}", np.asarray(picture).transpose(2, 0, 1)
            )

    def _draw(self, image: np.ndarray, output: dict[str, Any]) -> Image.Image:
        metadata = MetadataCatalog.get(self.dataset_name)
        things, stuff = metadata.get("thing_classes"), metadata.get("stuff_classes")
        scale = min(1.0, LARGEST / max(image.shape[:2]))
        if "panoptic_seg" in output:
            segments, info = output["panoptic_seg"]
            return draw_segments(image, segments.cpu().numpy(), info, stuff or things, scale=scale)
        if "instances" in output:
            found = output["instances"].to("cpu")
            found = found[found.scores >= self.threshold]
            return draw_instances(
                image,
                found.pred_boxes.tensor.numpy(),
                found.pred_classes.numpy(),
                things,
                masks=found.pred_masks.numpy() if found.has("pred_masks") else None,
                scores=found.scores.numpy(),
                scale=scale,
            )
        labels = output["sem_seg"].argmax(dim=0).cpu().numpy()
        return draw_label_map(image, labels, stuff or things, scale=scale)
