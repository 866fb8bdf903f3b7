"""Boxes and masks: AP by class and size, precision and recall, thresholds, confusion, the worst images."""

import contextlib
import io
import json
import os
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
from detectron2.data import DatasetCatalog, MetadataCatalog
from pycocotools.coco import COCO

from ..errors import UserError
from ..evaluation.names import distinct_names
from ..image_input import as_rgb
from ..results import Result
from . import plots
from .matching import (
    DOUBLE,
    ERRORS,
    HIT,
    IGNORED,
    MISSED,
    WRONG_CLASS,
    Outcome,
    best_thresholds,
    judge,
)
from .pictures import drawn
from .section import Case, Section, Table

try:
    from detectron2.evaluation.fast_eval_api import COCOeval_opt as COCOeval  # the same in C++
except ImportError:
    from pycocotools.cocoeval import COCOeval

WORST = 20
MOST_CLASSES = 40  # in a confusion matrix that can be read
PAIRS = 15  # most frequent confusions


@dataclass
class _Image:
    """One image's objects and predictions, best first."""

    record: dict[str, Any]
    truth: list[dict[str, Any]]
    found: list[dict[str, Any]]
    outcome: Outcome


def report_instances(dataset_name: str, results: Path) -> Section:
    """Look at an evaluation's predictions.

    Args:
        dataset_name: a name in Detectron2's catalog, whose metadata has `json_file`.
        results: coco_instances_results.json, which COCOEvaluator writes.

    Returns:
        The section.

    Raises:
        UserError: the results cannot be read.
    """
    DatasetCatalog.get(dataset_name)  # which completes the metadata
    metadata = MetadataCatalog.get(dataset_name)
    names = distinct_names(metadata.thing_classes)
    numbers = metadata.thing_dataset_id_to_contiguous_id
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO(metadata.json_file)
            entries = json.loads(results.read_text(encoding="utf-8"))
            # pycocotools takes the area of a box, where there is one, for that of the mask.
            masks = [
                {k: v for k, v in e.items() if k != "bbox"} for e in entries if "segmentation" in e
            ]
            found = truth.loadRes(entries) if entries else _nothing(truth)
            found_masks = truth.loadRes(masks) if masks else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
        raise UserError(
            f"{results} cannot be read as results of {metadata.json_file}: {error!r}"
        ) from error
    section = Section("Objects")
    evaluated = _evaluate(truth, found, "bbox")
    section.tables.append(_average_precision(evaluated, "bbox", names, numbers))
    section.plots += _precision_recall(evaluated, names, numbers)
    kind = "bbox"
    if found_masks is not None:
        kind = "segm"
        evaluated = _evaluate(truth, found_masks, kind)
        section.tables.append(_average_precision(evaluated, kind, names, numbers))
    images = _judged(dataset_name, truth, found, numbers, kind)
    objects = np.zeros(len(names), int)
    for image in images:
        for a in image.truth:
            objects[numbers[a["category_id"]]] += not a.get("iscrowd")
    flat = [(a["score"], numbers[a["category_id"]], kind_ == HIT) for i in images for a, kind_ in zip(i.found, i.outcome.kinds) if kind_ != IGNORED]  # fmt: skip
    columns = np.array(flat, float).reshape(-1, 3).T
    scores, labels, hits = columns[0], columns[1].astype(int), columns[2].astype(bool)
    grid, f1, best = best_thresholds(scores, hits, labels, objects)
    order = np.argsort(-objects)
    section.plots.append(
        plots.lines(
            {names[i]: (grid, f1[i]) for i in order if objects[i]},
            title="F1 over the threshold",
            x="lowest score",
            limits=(0, 1),
        )
    )
    section.tables.append(
        Table(
            "Threshold with the best F1",
            ["class", "threshold", "F1"],
            [[names[i], round(best[i], 2), round(f1[i].max(), 3)] for i in order if objects[i]],
            note="An object counts as found from an IoU of 0.5. "
            "predict --class-threshold NAME=VALUE takes these.",
        )
    )
    judged = [_above(image, best, numbers, kind) for image in images]
    _confusion(section, judged, names, numbers)
    total = {kind_: sum(i.outcome.counts[kind_] for i in judged) for kind_ in ERRORS}
    section.summary = [("images", str(len(images))), ("objects", str(objects.sum())), *((k, str(v)) for k, v in total.items())]  # fmt: skip
    judged.sort(key=_badness, reverse=True)
    section.cases = [
        _case(image, names, numbers, masks=kind == "segm")
        for image in judged[:WORST]
        if _badness(image)
    ]
    section.note = "Errors are counted above each class's threshold with the best F1."
    if not entries:
        section.note = "Nothing was found in any image."
    return section


def _nothing(truth: COCO) -> COCO:
    """Results without an entry, which pycocotools' `loadRes` cannot make."""
    results = COCO()
    results.dataset = {**truth.dataset, "annotations": []}
    results.createIndex()
    return results


def _evaluate(truth: COCO, found: COCO, task: str) -> COCOeval:
    with contextlib.redirect_stdout(io.StringIO()):
        evaluated = COCOeval(truth, found, task)
        evaluated.evaluate()
        evaluated.accumulate()
    return evaluated


def _mean(values: np.ndarray) -> float | None:
    """Of what is not -1, in percent; None: nothing there to measure."""
    values = values[values > -1]
    return round(100 * float(values.mean()), 1) if values.size else None


def _average_precision(
    evaluated: COCOeval, task: str, names: list[str], numbers: dict[int, int]
) -> Table:
    precision, recall = evaluated.eval["precision"], evaluated.eval["recall"]  # [T, R, K, A, M]
    counts = np.zeros((len(names), 4), int)
    for annotation in evaluated.cocoGt.anns.values():
        if annotation.get("iscrowd"):
            continue
        row = counts[numbers[annotation["category_id"]]]
        row[0] += 1
        limits = evaluated.params.areaRng[1:]
        row[1 + next(i for i, (_, high) in enumerate(limits) if annotation["area"] < high)] += 1
    rows: list[list[Any]] = []
    for k, category in enumerate(evaluated.params.catIds):
        p, number = precision[:, :, k, :, -1], numbers[category]
        rows.append(
            [names[number], int(counts[number, 0])]
            + [_mean(p[:, :, 0]), _mean(p[0, :, 0]), _mean(p[5, :, 0])]
            + [_mean(p[:, :, a]) for a in (1, 2, 3)]
            + [_mean(recall[:, k, 0, -1])]
        )
    every = precision[:, :, :, :, -1]
    head: list[Any] = ["all", int(counts[:, 0].sum())]
    head += [_mean(every[:, :, :, 0]), _mean(every[0, :, :, 0]), _mean(every[5, :, :, 0])]
    head += [_mean(every[..., a]) for a in (1, 2, 3)] + [_mean(recall[:, :, 0, -1])]
    sizes = counts[:, 1:].sum(0).tolist()
    columns = ["class", "objects", "AP", "AP50", "AP75", "AP small", "AP medium", "AP large", "recall"]  # fmt: skip
    title = "Average precision of " + ("boxes" if task == "bbox" else "masks")
    note = "{} objects are small (below 32 x 32 pixels), {} medium, {} large (from 96 x 96).".format(*sizes)  # fmt: skip
    return Table(title, columns, [head, *rows], note)


def _precision_recall(evaluated: COCOeval, names: list[str], numbers: dict[int, int]) -> list[str]:
    """A plot, unless there is no object."""
    precision = evaluated.eval["precision"][0, :, :, 0, -1]
    recall = evaluated.params.recThrs
    known = precision.max(0) > -1
    if not known.any():
        return []
    order = [k for k in np.argsort(-precision.mean(0)).tolist() if known[k]]
    series = {"mean": (recall, precision[:, known].mean(1))}
    ids = evaluated.params.catIds
    series |= {names[numbers[ids[k]]]: (recall, precision[:, k]) for k in order}
    return [plots.lines(series, title="Precision and recall of boxes at IoU 0.5", x="recall", y="precision", limits=(0, 1.02))]  # fmt: skip


def _judged(
    dataset_name: str, truth: COCO, found: COCO, numbers: dict[int, int], kind: str
) -> list[_Image]:
    of_image = defaultdict(list)
    for annotation in found.anns.values():
        of_image[annotation["image_id"]].append(annotation)
    images = []
    for record in DatasetCatalog.get(dataset_name):
        objects = truth.imgToAnns[record["image_id"]]
        predictions = sorted(of_image[record["image_id"]], key=lambda a: -a["score"])
        images.append(_look(record, truth, objects, predictions, numbers, kind))
    return images


def _look(
    record: dict[str, Any],
    coco: COCO,
    objects: list[dict[str, Any]],
    predictions: list[dict[str, Any]],
    numbers: dict[int, int],
    kind: str,
) -> _Image:
    crowds = [bool(a.get("iscrowd")) for a in objects]
    if kind == "segm":
        sides = [[a["segmentation"] for a in predictions], [coco.annToRLE(a) for a in objects]]
    else:
        sides = [[a["bbox"] for a in given] for given in (predictions, objects)]
    iou = mask_util.iou(*sides, crowds) if predictions and objects else []
    iou = np.reshape(iou, (len(predictions), len(objects)))
    labels = [[numbers[a["category_id"]] for a in given] for given in (predictions, objects)]
    return _Image(record, objects, predictions, judge(iou, *labels, crowds))


def _above(image: _Image, best: np.ndarray, numbers: dict[int, int], kind: str) -> _Image:
    """The same image with the predictions above their thresholds; they come first in score, so the verdicts on them stay."""
    keep = [a["score"] >= best[numbers[a["category_id"]]] for a in image.found]
    before = image.outcome
    kinds = [k for k, kept in zip(before.kinds, keep) if kept]
    partners = before.partners[np.array(keep, bool)]
    found = np.array([bool(a.get("iscrowd")) for a in image.truth], bool)
    found[partners[np.array(kinds) == HIT]] = True
    counts = {k: kinds.count(k) for k in ERRORS}
    counts[MISSED] = int((~found).sum())
    predictions = [a for a, kept in zip(image.found, keep) if kept]
    return _Image(image.record, image.truth, predictions, Outcome(kinds, partners, found, counts))


def _confusion(
    section: Section, images: list[_Image], names: list[str], numbers: dict[int, int]
) -> None:
    size = len(names)
    table = np.zeros((size + 1, size + 1), int)
    for image in images:
        taken = image.outcome.found.copy()
        for a, kind, partner in zip(
            image.found, image.outcome.kinds, image.outcome.partners.tolist()
        ):
            label = numbers[a["category_id"]]
            if kind in (HIT, WRONG_CLASS):
                table[numbers[image.truth[partner]["category_id"]], label] += 1
                taken[partner] = True
            elif kind not in (IGNORED, DOUBLE):
                table[size, label] += 1
        for a, seen in zip(image.truth, taken):
            table[numbers[a["category_id"]], size] += not seen
    if size <= MOST_CLASSES:
        section.plots.append(plots.confusion(table, names, "missed", "background"))
    wrong = table.copy()
    np.fill_diagonal(wrong, 0)
    every = [*names, "(nothing)"]
    pairs = np.dstack(np.unravel_index(np.argsort(-wrong, axis=None)[:PAIRS], wrong.shape))[0].tolist()  # fmt: skip
    section.tables.append(
        Table(
            "Most frequent confusions",
            ["true", "predicted", "times"],
            [[every[i], every[j], int(wrong[i, j])] for i, j in pairs if wrong[i, j]],
            note="An object on which several predictions lie counts for the one that found it and for each of "
            "another class.",
        )
    )


def _badness(image: _Image) -> float:
    """How wrong an image is: a miss counts 1, a wrong prediction its score."""
    wrong = zip(image.found, image.outcome.kinds)
    return image.outcome.counts[MISSED] + sum(a["score"] for a, k in wrong if k not in (HIT, IGNORED))  # fmt: skip


def _case(image: _Image, names: list[str], numbers: dict[int, int], *, masks: bool) -> Case:
    """Draw boxes, and masks only where the model gives them: pycocotools adds to a box its outline as one."""
    pixels = as_rgb(image.record["file_name"])
    pictures = []
    size = pixels.shape[:2]
    for given in ([a for a in image.truth if not a.get("iscrowd")], image.found):
        boxes = np.array([a["bbox"] for a in given], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([numbers[a["category_id"]] for a in given], np.int64)
        shapes = None
        if masks and given and all(a.get("segmentation") for a in given):
            shapes = np.stack([_mask(a["segmentation"], size) for a in given])
        scores = np.array([a["score"] for a in given], np.float32) if given and "score" in given[0] else None  # fmt: skip
        result = Result(pixels, names, boxes=boxes, classes=labels, scores=scores, masks=shapes)
        pictures.append(drawn(result, "instance"))
    errors = {kind: count for kind, count in image.outcome.counts.items() if count}
    return Case(os.path.basename(image.record["file_name"]), round(_badness(image), 2), errors, *pictures)  # fmt: skip


def _mask(segmentation: Any, size: tuple[int, int]) -> np.ndarray:
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, *size)
    rles = segmentation if isinstance(segmentation, list) else [segmentation]
    return mask_util.decode(mask_util.merge(rles)).astype(bool)
