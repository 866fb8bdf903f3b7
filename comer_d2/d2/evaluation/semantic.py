"""Mean intersection over union."""

import logging
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from ..data.semantic_labels import SemanticLabels
from ..errors import UserError

logger = logging.getLogger(__name__)


class SemanticEvaluator(DatasetEvaluator):
    """mIoU and its relatives, named and defined as by Detectron2's ``SemSegEvaluator``.

    That one takes a label outside the classes, or a file of another size, for an obscure error,
    cannot read labels out of panoptic files, and keeps every prediction in memory. This one keeps
    one table.

    Args:
        dataset_name: a name in Detectron2's catalog; its metadata has `stuff_classes`.
    """

    def __init__(self, dataset_name: str) -> None:
        self._names = list(MetadataCatalog.get(dataset_name).stuff_classes)
        self._labels = SemanticLabels(dataset_name)
        self._records = {record["file_name"]: record for record in DatasetCatalog.get(dataset_name)}
        self.reset()

    def reset(self) -> None:
        self._table = np.zeros((len(self._names), len(self._names)), dtype=np.int64)

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take the predictions of some images.

        Args:
            inputs: the model's, with `file_name`.
            outputs: the model's: ``sem_seg`` is (num_classes, h, w), scores.
        """
        count = len(self._names)
        for image, output in zip(inputs, outputs, strict=True):
            record = self._records[image["file_name"]]
            truth = self._labels(record)
            prediction = output["sem_seg"].argmax(dim=0).cpu().numpy()
            if prediction.shape != truth.shape:
                raise UserError(
                    f"{record['file_name']}: the labels have size {truth.shape}, the prediction "
                    f"{prediction.shape} (height, width)"
                )
            known = truth != self._labels.ignore_label
            pairs = truth[known].astype(np.int64) * count + prediction[known]
            self._table += np.bincount(pairs, minlength=count**2).reshape(count, count)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns ``{"sem_seg": mIoU, fwIoU, mACC, pACC, IoU-<class>, ACC-<class>}``, percent.

        In the main process; elsewhere None. Classes that the ground truth lacks are NaN, and not
        part of the means.
        """
        comm.synchronize()
        tables = comm.gather(self._table)
        if not comm.is_main_process():
            return None
        result = mean_iou(np.sum(tables, axis=0), self._names)
        logger.info("mIoU %.2f, pixel accuracy %.2f", result["mIoU"], result["pACC"])
        return {"sem_seg": result}


def mean_iou(table: np.ndarray, names: list[str]) -> dict[str, float]:
    """Metrics of a confusion matrix.

    Args:
        table: (num_classes, num_classes) int: pixels of true class (row) and predicted class.
        names: of the classes.

    Returns:
        See :meth:`SemanticEvaluator.evaluate`.
    """
    hits = table.diagonal().astype(float)
    truth, prediction = table.sum(axis=1).astype(float), table.sum(axis=0).astype(float)
    occurs = truth > 0
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = np.where(occurs, hits / truth, np.nan)
        iou = np.where(occurs, hits / (truth + prediction - hits), np.nan)
        share = truth / truth.sum()
    result = {
        "mIoU": _percent_mean(iou[occurs]),
        "fwIoU": 100 * float((iou[occurs] * share[occurs]).sum()),
        "mACC": _percent_mean(accuracy[occurs]),
        "pACC": 100 * float(hits.sum() / truth.sum()) if occurs.any() else float("nan"),
    }
    result |= {f"IoU-{name}": 100 * float(v) for name, v in zip(names, iou, strict=True)}
    result |= {f"ACC-{name}": 100 * float(v) for name, v in zip(names, accuracy, strict=True)}
    return result


def _percent_mean(values: np.ndarray) -> float:
    return 100 * float(values.mean()) if len(values) else float("nan")
