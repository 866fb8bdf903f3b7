"""Ground truth drawn, alone or beside prediction."""

import random
from collections.abc import Sequence
from typing import Any

from detectron2.data import DatasetCatalog
from PIL import Image
from tqdm import tqdm

from .data.custom import kind_of
from .image_input import as_rgb
from .predictor import DEFAULT_THRESHOLD, Predictor, Threshold
from .results import Result


def compare(
    predictor: Predictor,
    dataset_name: str,
    *,
    count: int,
    task: str | None = None,
    threshold: Threshold = DEFAULT_THRESHOLD,
    picture_side: int = 256,
    progress: bool = True,
) -> list[tuple[Image.Image, Image.Image]]:
    """Draw the first images of a registered dataset, ground truth and prediction.

    Args:
        predictor: the model.
        dataset_name: a name in Detectron2's catalog.
        count: number of images.
        task: "instance", "semantic" or "panoptic"; the default is the first the model predicts.
        threshold: objects below this score are left out.
        picture_side: length of the longer side of each picture, pixels.
        progress: show a progress bar.

    Returns:
        (ground truth, prediction) of each image, for :func:`.visualization.sheet.picture_sheet`.
    """
    records = DatasetCatalog.get(dataset_name)[:count]
    found = predictor.stream((r["file_name"] for r in records), threshold=threshold)
    pairs = []
    bar = tqdm(zip(records, found), "pictures", len(records), unit="image", disable=not progress)
    for record, result in bar:
        task = task or result.task
        truth = truth_of(record, dataset_name, task, predictor.class_names, result.stuff_classes)
        scale = picture_side / max(result.image.shape[:2])
        pairs.append((truth.draw(task=task, scale=scale), result.draw(task=task, scale=scale)))
    return pairs


# What a kind's truth holds -> the task that draws it.
TRUTHS = {"panoptic_seg": "panoptic", "sem_seg": "semantic", "instances": "instance"}


def draw_truth(
    dataset_name: str, *, count: int, seed: int | None = None, picture_side: int = 320
) -> list[Image.Image]:
    """Draw images of a registered dataset with their annotations.

    Args:
        dataset_name: a name in Detectron2's catalog.
        count: number of images.
        seed: draws them by lot; None: the first.
        picture_side: length of the longer side of each picture, pixels.

    Returns:
        The pictures.
    """
    records = DatasetCatalog.get(dataset_name)
    if seed is not None:
        records = random.Random(seed).sample(records, len(records))
    kind = kind_of(dataset_name)
    pictures = []
    for record in records[:count]:
        task = next(task for key, task in TRUTHS.items() if key in kind.truth(record))
        truth = truth_of(record, dataset_name, task, kind.classes, kind.stuff_classes)
        pictures.append(truth.draw(task=task, scale=picture_side / max(truth.image.shape[:2])))
    return pictures


def truth_of(
    record: dict[str, Any],
    dataset_name: str,
    task: str,
    class_names: Sequence[str],
    stuff_classes: Sequence[int] = (),
) -> Result:
    """What a dataset says of one of its images.

    Args:
        record: Detectron2's dataset dict: with annotations, or with panoptic segments or a label map.
        dataset_name: a name in Detectron2's catalog.
        task: "instance", "semantic" or "panoptic".
        class_names: name of each class.
        stuff_classes: numbers of the classes that are no objects.

    Returns:
        A result without scores.
    """
    image = as_rgb(record["file_name"])
    fields: dict[str, Any] = {"stuff_classes": stuff_classes}
    truth = kind_of(dataset_name).truth(record)
    if task == "semantic":
        fields["label_map"] = truth["sem_seg"]
    elif task == "panoptic":
        fields["segments"], fields["segments_info"] = truth["panoptic_seg"]
    else:
        objects = truth["instances"]
        fields["boxes"] = objects.gt_boxes.tensor.numpy()
        fields["classes"] = objects.gt_classes.numpy()
        if objects.has("gt_masks"):
            fields["masks"] = objects.gt_masks.numpy()
    return Result(image, class_names, record["file_name"], **fields)
