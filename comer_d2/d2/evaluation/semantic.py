"""Mean intersection over union."""

import logging
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator, sem_seg_evaluation
from tabulate import tabulate

from ..data.semantic_labels import IGNORE_LABEL, SemanticLabels
from ..errors import UserError
from .names import distinct_names

logger = logging.getLogger(__name__)


class SemanticEvaluator(SemSegEvaluator):
    """Detectron2's ``SemSegEvaluator`` on label maps read by :class:`SemanticLabels`.

    Detectron2's own takes a label outside the classes, or a file of another size, for an obscure
    error, cannot read labels out of panoptic files, and keeps every prediction in memory. Metrics
    and their names are its own: boundary IoU and ``min(IoU, B-Iou)`` too where OpenCV is installed.

    Args:
        dataset_name: a name in Detectron2's catalog; its metadata has `stuff_classes`.
        distributed: gather the counts of all processes.
        output_dir: if given, predictions are kept and written there in COCO's format.
    """

    def __init__(
        self, dataset_name: str, distributed: bool = True, output_dir: str | None = None
    ) -> None:
        # Not Detectron2's, which wants a label map's file in every record.
        metadata = MetadataCatalog.get(dataset_name)
        self._logger = logging.Logger(__name__, logging.WARNING)  # for Detectron2's own code
        self._dataset_name = dataset_name
        self._distributed = distributed
        self._output_dir = output_dir
        self._cpu_device = torch.device("cpu")
        self._class_names = distinct_names(metadata.stuff_classes)
        self._num_classes = len(self._class_names)
        self._ignore_label = IGNORE_LABEL
        self._contiguous_id_to_dataset_id = None
        # Boundaries are found in images of bytes, which have no number left for "ignored" then.
        self._compute_boundary_iou = sem_seg_evaluation._CV2_IMPORTED and self._num_classes < 255
        self._labels = SemanticLabels(dataset_name)
        self._records = {record["file_name"]: record for record in DatasetCatalog.get(dataset_name)}
        self.reset()

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take the predictions of some images.

        Args:
            inputs: the model's, with `file_name`.
            outputs: the model's: ``sem_seg`` is (num_classes, h, w), scores.
        """
        for image, output in zip(inputs, outputs, strict=True):
            record = self._records[image["file_name"]]
            truth = self._labels(record)
            size = tuple(output["sem_seg"].shape[-2:])
            if size != truth.shape:
                raise UserError(
                    f"{record['file_name']}: the labels have size {truth.shape}, the prediction "
                    f"{size} (height, width)"
                )
            self.input_file_to_gt_file = {image["file_name"]: truth}
            super().process([image], [output])

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Detectron2's, which logs a dictionary, with a table instead.

        Returns:
            In the main process ``{"sem_seg": metric -> percent}``; elsewhere None.
        """
        results = super().evaluate()
        if results:
            found = results["sem_seg"]
            rows = [[n, found[f"IoU-{n}"], found[f"ACC-{n}"]] for n in self._class_names]
            table = tabulate(rows, ["class", "IoU", "accuracy"], "pipe", floatfmt=".2f")
            logger.info("Intersection over union, and accuracy:\n%s", table)
        return results

    @staticmethod
    def sem_seg_loading_fn(truth: np.ndarray, dtype: type) -> np.ndarray:
        """Detectron2's hook for reading a file: `process` has read it."""
        return truth.astype(dtype)

    def encode_json_sem_seg(self, sem_seg: np.ndarray, input_file_name: str) -> list[dict]:
        """Detectron2's, where predictions are written; with `image_id`, without which pycocotools does not load them."""
        if not self._output_dir:
            return []
        record = self._records[input_file_name]
        known = {"image_id": record["image_id"]} if "image_id" in record else {}
        return [known | entry for entry in super().encode_json_sem_seg(sem_seg, input_file_name)]
