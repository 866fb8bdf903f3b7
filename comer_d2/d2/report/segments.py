"""Panoptic segmentation: PQ by class, the worst images."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..data.panoptic_png import read_panoptic_png
from ..errors import UserError
from ..evaluation.names import distinct_names
from ..evaluation.panoptic import FN, FP, IOU, TP, match_segments
from ..image_input import as_rgb
from ..results import Result
from .pictures import drawn
from .section import Case, Section, Table

WORST = 20


def report_segments(dataset_name: str, results: Path) -> Section:
    """Look at an evaluation's predictions.

    Args:
        dataset_name: a name in Detectron2's catalog, of panoptic data.
        results: panoptic.json, which PanopticEvaluator writes beside the folder panoptic/.

    Returns:
        The section.

    Raises:
        UserError: the results cannot be read.
    """
    metadata = MetadataCatalog.get(dataset_name)
    names = distinct_names(metadata.stuff_classes)
    numbers = {**metadata.thing_dataset_id_to_contiguous_id, **metadata.stuff_dataset_id_to_contiguous_id}  # fmt: skip
    things = set(metadata.thing_dataset_id_to_contiguous_id.values())
    try:
        written = {a["image_id"]: a for a in json.loads(results.read_text())["annotations"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{results} cannot be read as predictions: {error!r}") from error
    total = np.zeros((len(names), 4))
    judged = []
    for record in DatasetCatalog.get(dataset_name):
        entry = written.get(record["image_id"])
        if entry is None:
            raise UserError(f"{results} lacks image {record['image_id']}: evaluate again")
        info = [{**s, "category_id": numbers[s["category_id"]]} for s in entry["segments_info"]]
        segments = read_panoptic_png(results.parent / "panoptic" / entry["file_name"])
        truth = read_panoptic_png(record["pan_seg_file_name"])
        table = match_segments(truth, record["segments_info"], segments, info, len(names))
        total += table
        if table.any():  # else there is nothing but void, or crowds
            judged.append((_quality(table.sum(0)), table, record, (segments, info)))
    section = Section("Segments")
    rows: list[list[Any]] = []
    qualities = []
    for name, row, number in zip(names, total, range(len(names))):
        if row[TP] + row[FP] + row[FN]:
            qualities.append(_quality(row))
            sq = 100 * row[IOU] / max(row[TP], 1)
            counts = [int(row[TP] + row[FN]), int(row[TP]), int(row[FP]), int(row[FN])]
            rows.append([name, "thing" if number in things else "stuff", round(100 * _quality(row), 1), round(sq, 1), *counts])  # fmt: skip
    section.summary = [("images", str(len(DatasetCatalog.get(dataset_name))))]
    if qualities:
        section.summary.append(("PQ", f"{100 * np.mean(qualities):.1f}"))
    columns = ["class", "kind", "PQ", "SQ", "segments", "found", "false", "missed"]
    section.tables.append(Table("By class", columns, rows))
    judged.sort(key=lambda entry: entry[0])
    section.cases = [
        _case(record, quality, table, names, found, things)
        for quality, table, record, found in judged[:WORST]
        if quality < 1
    ]
    return section


def _quality(row: np.ndarray) -> float:
    """PQ of counts as `match_segments` gives them, as a share."""
    return float(row[IOU] / max(row[TP] + 0.5 * row[FP] + 0.5 * row[FN], 1e-9))


def _case(
    record: dict[str, Any],
    quality: float,
    table: np.ndarray,
    names: list[str],
    found: tuple[np.ndarray, list[dict[str, Any]]],
    things: set[int],
) -> Case:
    pixels = as_rgb(record["file_name"])
    truth = read_panoptic_png(record["pan_seg_file_name"]), record["segments_info"]
    stuff = [i for i in range(len(names)) if i not in things]
    pictures = (
        drawn(Result(pixels, names, segments=segments, segments_info=list(info), stuff_classes=stuff), "panoptic")
        for segments, info in (truth, found)
    )  # fmt: skip
    errors = {"missed": int(table[:, FN].sum()), "false": int(table[:, FP].sum())}
    errors = {kind: count for kind, count in errors.items() if count}
    return Case(os.path.basename(record["file_name"]), round(100 * (1 - quality), 1), errors, *pictures)  # fmt: skip
