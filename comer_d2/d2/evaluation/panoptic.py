"""Panoptic quality."""

import json
import logging
import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate

from ..data.panoptic_png import VOID, read_panoptic_png, write_panoptic_png
from ..errors import UserError
from .names import distinct_names

logger = logging.getLogger(__name__)

# The columns of the table that is counted: sum of the IoUs of matches, and three counts.
IOU, TP, FP, FN = range(4)


def match_segments(
    truth: np.ndarray,
    truth_info: Sequence[dict[str, Any]],
    prediction: np.ndarray,
    prediction_info: Sequence[dict[str, Any]],
    num_classes: int,
) -> np.ndarray:
    """Match the segments of one image and count.

    A predicted segment matches a true one of its class where their IoU, without the predicted
    pixels that are void in the truth, is more than 0.5 (so that a segment has one match at most).
    A true segment without a match is a false negative unless it is a crowd. A predicted one is a
    false positive unless more than half of it is void or crowd of its class in the truth.

    Source: Sec. 4.1 and 4.2 of arXiv 1801.00868; crowds as in COCO's evaluation.

    Args:
        truth: (h, w) int, segment ids, 0 for void.
        truth_info: `id`, `category_id` and optionally `iscrowd` of the true segments.
        prediction: (h, w) int, segment ids, 0 for void.
        prediction_info: `id` and `category_id` of the predicted segments.
        num_classes: class ids are 0 to this minus 1.

    Returns:
        (num_classes, 4) float64: sum of the matches' IoUs, true positives, false positives, false
        negatives.

    Raises:
        ValueError: the sizes differ, or an id that is in an image is not in its info.
    """
    if truth.shape != prediction.shape:
        raise ValueError(f"prediction has size {prediction.shape}, truth {truth.shape}")
    pixels, truth_area, prediction_area = _count_pixels(truth, prediction)
    truth_class = _classes(truth_info, truth_area, "truth")
    prediction_class = _classes(prediction_info, prediction_area, "prediction")
    crowds = {info["id"] for info in truth_info if info.get("iscrowd", 0)}

    table = np.zeros((num_classes, 4))
    matched_truth, matched_prediction = set(), set()
    for (true_id, predicted_id), common in pixels.items():
        if VOID in (true_id, predicted_id) or true_id in crowds:
            continue
        label = truth_class[true_id]
        if label != prediction_class[predicted_id]:
            continue
        union = truth_area[true_id] + prediction_area[predicted_id] - common
        iou = common / (union - pixels.get((VOID, predicted_id), 0))
        if iou > 0.5:
            table[label, IOU] += iou
            table[label, TP] += 1
            matched_truth.add(true_id)
            matched_prediction.add(predicted_id)

    for true_id, label in truth_class.items():
        if true_id not in matched_truth and true_id not in crowds and true_id in truth_area:
            table[label, FN] += 1
    for predicted_id, label in prediction_class.items():
        if predicted_id in matched_prediction or predicted_id not in prediction_area:
            continue
        excused = [VOID, *(crowd for crowd in crowds if truth_class[crowd] == label)]
        common = sum(pixels.get((true_id, predicted_id), 0) for true_id in excused)
        if common <= 0.5 * prediction_area[predicted_id]:
            table[label, FP] += 1
    return table


def panoptic_quality(table: np.ndarray, is_thing: Sequence[bool]) -> dict[str, float]:
    """PQ, SQ and RQ in percent, averaged over the classes that occur.

    Args:
        table: (num_classes, 4), the sum of what :func:`match_segments` gave.
        is_thing: per class, whether it is a thing.

    Returns:
        ``PQ, SQ, RQ`` of all classes, ``PQ_th, ...`` of things, ``PQ_st, ...`` of stuff; NaN where
        no class occurs.
    """
    pq, sq, rq, occurs = _class_quality(table)
    things = np.asarray(is_thing, dtype=bool)
    result = {}
    for suffix, chosen in (("", occurs), ("_th", occurs & things), ("_st", occurs & ~things)):
        for name, values in (("PQ", pq), ("SQ", sq), ("RQ", rq)):
            result[name + suffix] = 100 * values[chosen].mean() if chosen.any() else float("nan")
    return result


class PanopticEvaluator(DatasetEvaluator):
    """Panoptic quality on a dataset whose records have `pan_seg_file_name` and `segments_info`.

    Detectron2's ``COCOPanopticEvaluator`` needs panopticapi, which no package index has. This one
    counts image by image, so that nothing but a table is kept and exchanged.

    Args:
        dataset_name: a name in Detectron2's catalog. Its metadata has `stuff_classes`, the names
            of all classes, and `thing_dataset_id_to_contiguous_id`.
        output_dir: if given, predictions are written there in COCO's format: panoptic/*.png and
            panoptic.json.
    """

    def __init__(self, dataset_name: str, output_dir: str | os.PathLike | None = None) -> None:
        metadata = MetadataCatalog.get(dataset_name)
        self._things = dict(metadata.thing_dataset_id_to_contiguous_id)
        self._stuff = dict(metadata.stuff_dataset_id_to_contiguous_id)
        self._names = distinct_names(metadata.stuff_classes)
        self._records = {record["file_name"]: record for record in DatasetCatalog.get(dataset_name)}
        self._output_dir = output_dir
        paths = [record["pan_seg_file_name"] for record in self._records.values()]
        self._root = metadata.get("panoptic_root") or os.path.commonpath(
            map(os.path.dirname, paths)
        )
        self.reset()

    def reset(self) -> None:
        self._table = np.zeros((len(self._names), 4))
        self._written: list[dict[str, Any]] = []

    def process(self, inputs: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> None:
        """Take the predictions of some images.

        Args:
            inputs: the model's, with `file_name`.
            outputs: the model's: ``panoptic_seg`` is ((h, w) int segment ids, list of `id` and
                `category_id`, a class number).
        """
        for image, output in zip(inputs, outputs, strict=True):
            record = self._records[image["file_name"]]
            segments, info = output["panoptic_seg"]
            segments = segments.cpu().numpy()
            try:
                truth = read_panoptic_png(record["pan_seg_file_name"])
                self._table += match_segments(
                    truth, record["segments_info"], segments, info, len(self._names)
                )
            except (ValueError, OSError) as error:
                raise UserError(f"{record['pan_seg_file_name']}: {error}") from error
            if self._output_dir:
                self._write(record, segments, info)

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Returns ``{"panoptic_seg": ...}`` in the main process: see :func:`panoptic_quality`.

        The metrics also have ``PQ-<class>`` of every class that occurs.
        """
        comm.synchronize()
        tables = comm.gather(self._table)
        written = comm.gather(self._written)
        if not comm.is_main_process():
            return None
        if self._output_dir:
            path = Path(self._output_dir) / "panoptic.json"
            part = path.with_suffix(".part")
            part.write_text(json.dumps({"annotations": [*chain(*written)]}))
            os.replace(part, path)
        table = np.sum(tables, axis=0)
        things = set(self._things.values())
        result = panoptic_quality(table, [i in things for i in range(len(self._names))])
        self._log(result)
        pq, _, _, occurs = _class_quality(table)
        for i, name in enumerate(self._names):
            if occurs[i]:
                result[f"PQ-{name}"] = 100 * pq[i]
        return {"panoptic_seg": result}

    def _write(
        self, record: dict[str, Any], segments: np.ndarray, info: list[dict[str, Any]]
    ) -> None:
        # Below its root: files of one name in several folders stay apart.
        name = os.path.relpath(record["pan_seg_file_name"], self._root)
        path = Path(self._output_dir) / "panoptic" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_panoptic_png(segments, path)
        ids = {i: dataset_id for dataset_id, i in {**self._things, **self._stuff}.items()}
        self._written.append(
            {
                "image_id": record["image_id"],
                "file_name": name,
                "segments_info": [
                    {"id": segment["id"], "category_id": ids[segment["category_id"]]}
                    for segment in info
                ],
            }
        )

    def _log(self, result: dict[str, float]) -> None:
        rows = [
            [group, *(result[name + suffix] for name in ("PQ", "SQ", "RQ"))]
            for group, suffix in (("all", ""), ("things", "_th"), ("stuff", "_st"))
        ]
        table = tabulate(rows, headers=["", "PQ", "SQ", "RQ"], tablefmt="pipe", floatfmt=".3f")
        logger.info("Panoptic quality:\n%s", table)


def _count_pixels(
    truth: np.ndarray, prediction: np.ndarray
) -> tuple[dict[tuple[int, int], int], dict[int, int], dict[int, int]]:
    """Pixels of every pair of ids, and of every id in the truth and in the prediction."""
    pairs = truth.astype(np.int64) * 256**3 + prediction.astype(np.int64)
    values, counts = np.unique(pairs, return_counts=True)
    pixels, truth_area, prediction_area = {}, {}, {}
    for value, count in zip(values.tolist(), counts.tolist(), strict=True):
        true_id, predicted_id = divmod(value, 256**3)
        pixels[true_id, predicted_id] = count
        truth_area[true_id] = truth_area.get(true_id, 0) + count
        prediction_area[predicted_id] = prediction_area.get(predicted_id, 0) + count
    return pixels, truth_area, prediction_area


def _classes(info: Sequence[dict[str, Any]], area: dict[int, int], what: str) -> dict[int, int]:
    """Id -> class, of one image's segments."""
    classes = {segment["id"]: segment["category_id"] for segment in info}
    unknown = sorted(set(area) - set(classes) - {VOID})
    if unknown:
        raise ValueError(f"segments {unknown[:5]} of the {what} are not in its segments_info")
    return classes


def _class_quality(
    table: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """PQ, SQ and RQ per class as shares, and whether the class occurs."""
    iou, tp, fp, fn = table.T
    weight = tp + 0.5 * fp + 0.5 * fn
    with np.errstate(invalid="ignore"):
        pq, rq = iou / weight, tp / weight
    return pq, iou / np.maximum(tp, 1), rq, weight > 0
