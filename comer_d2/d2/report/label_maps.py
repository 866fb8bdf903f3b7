"""Semantic segmentation: IoU by class, confusion, the worst images."""

import json
import os
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.semantic_labels import IGNORE_LABEL, SemanticLabels
from ..errors import UserError
from ..evaluation.names import distinct_names
from ..image_input import as_rgb
from ..results import Result
from . import plots
from .pictures import drawn
from .section import Case, Section, Table

WORST = 20
MOST_CLASSES = 40  # in a confusion matrix that can be read


def report_label_maps(dataset_name: str, results: Path) -> Section:
    """Look at an evaluation's predictions.

    Args:
        dataset_name: a name in Detectron2's catalog, with `stuff_classes`.
        results: sem_seg_predictions.json, which SemanticEvaluator writes.

    Returns:
        The section.

    Raises:
        UserError: the results cannot be read.
    """
    names = distinct_names(MetadataCatalog.get(dataset_name).stuff_classes)
    try:
        written = json.loads(results.read_text(encoding="utf-8"))
        of_image = defaultdict(list)
        for entry in written:
            of_image[entry["file_name"]].append((entry["category_id"], entry["segmentation"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{results} cannot be read as predictions: {error!r}") from error
    labels = SemanticLabels(dataset_name)
    size = len(names)
    total = np.zeros((size, size + 1), np.int64)  # by row the truth; the last column is no class
    judged = []
    for record in DatasetCatalog.get(dataset_name):
        truth = labels(record)
        found = _label_map(of_image[record["file_name"]], truth.shape, size)
        counted = truth != IGNORE_LABEL
        pairs = truth[counted].astype(np.int64) * (size + 1) + found[counted]
        table = np.bincount(pairs, minlength=size * (size + 1)).reshape(size, size + 1)
        total += table
        wrong = (table.sum() - np.trace(table)) / max(table.sum(), 1)
        judged.append((wrong, table, record))
    iou, rows = _by_class(total, names)
    section = Section("Classes of pixels", prediction="wrong pixels, and what was said of them")
    known = iou[~np.isnan(iou)]
    section.summary = [("images", str(len(judged)))]
    if known.size:
        section.summary.append(("mIoU", f"{100 * known.mean():.1f}"))
    note = "Pixels of the validation data that are marked as ignored do not count."
    columns = ["class", "pixels", "images", "IoU", "precision", "recall", "taken most often for"]
    images = np.sum([table.sum(1) > 0 for _, table, _ in judged], axis=0)
    for row, count in zip(rows, images.tolist()):
        row.insert(2, count)
    section.tables.append(Table("By class", columns, rows, note))
    if size <= MOST_CLASSES:
        padded = np.vstack([total, np.zeros((1, size + 1), np.int64)])
        section.plots.append(plots.confusion(padded, names, "none", ""))
    judged.sort(key=lambda entry: -entry[0])
    section.cases = [
        _case(record, wrong, table, names, labels(record), of_image)
        for wrong, table, record in judged[:WORST]
        if wrong
    ]
    return section


def _label_map(parts: list[tuple[int, Any]], shape: tuple[int, int], size: int) -> np.ndarray:
    found = np.full(shape, size, np.int64)
    for label, rle in parts:
        found[mask_util.decode(rle).astype(bool)] = label
    return found


def _by_class(table: np.ndarray, names: list[str]) -> tuple[np.ndarray, list[list[Any]]]:
    hits, truth, found = np.diag(table), table.sum(1), table[:, :-1].sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        # A class that is nowhere in the truth is not measured, as Detectron2 has it.
        iou = np.where(truth > 0, hits / (truth + found - hits), np.nan)
        precision, recall = hits / found, hits / truth
    wrong = table[:, :-1].copy()
    np.fill_diagonal(wrong, 0)
    rows: list[list[Any]] = []
    for i, name in enumerate(names):
        other = int(wrong[i].argmax())
        share = wrong[i, other] / max(truth[i], 1)
        confused = f"{names[other]} ({share:.0%})" if wrong[i, other] else None
        values = [None if np.isnan(v) else round(100 * float(v), 1) for v in (iou[i], precision[i], recall[i])]  # fmt: skip
        rows.append([name, int(truth[i]), *values, confused])
    return iou, rows


def _case(
    record: dict[str, Any],
    wrong: float,
    table: np.ndarray,
    names: list[str],
    truth: np.ndarray,
    of_image: dict[str, list],
) -> Case:
    pixels = as_rgb(record["file_name"])
    size = len(names)
    found = _label_map(of_image[record["file_name"]], truth.shape, size)
    missed = table.sum(1) - np.diag(table)
    worst = [i for i in np.argsort(-missed).tolist()[:3] if missed[i]]
    errors = {names[i]: int(missed[i]) for i in worst}
    # Wrong pixels alone, in the colour of what was said of them.
    said = np.where((found == truth) | (truth == IGNORE_LABEL), IGNORE_LABEL, found)
    pictures = (drawn(Result(pixels, names, label_map=shown), "semantic") for shown in (truth, said))  # fmt: skip
    return Case(os.path.basename(record["file_name"]), round(100 * wrong, 1), errors, *pictures)
