"""Ground truth beside prediction, for the first images of a dataset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.data.detection_utils import annotations_to_instances
from detectron2.structures import BoxMode, Instances
from PIL import Image
from tqdm import tqdm

from .data.segmentation_mappers import PanopticMapper
from .data.semantic_labels import SemanticLabels, read_segments
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
    if task == "semantic":
        fields["label_map"] = SemanticLabels(dataset_name)(record)
    elif task == "panoptic":
        fields["segments"] = read_segments(record)
        fields["segments_info"] = record["segments_info"]
    else:
        objects = _objects(record, image.shape[:2])
        fields["boxes"] = objects.gt_boxes.tensor.numpy()
        fields["classes"] = objects.gt_classes.numpy()
        if objects.has("gt_masks"):
            fields["masks"] = objects.gt_masks.tensor.numpy()
    return Result(image, class_names, record["file_name"], **fields)


def _objects(record: dict[str, Any], size: tuple[int, int]) -> Instances:
    """`gt_boxes`, `gt_classes` and, where there are any, `gt_masks` as bitmasks; no crowds."""
    if "annotations" not in record:
        return PanopticMapper(True, augmentations=[], things_only=True)(record)["instances"]
    shown = []
    for annotation in record["annotations"]:
        if not annotation.get("iscrowd", 0):
            box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
            shown.append({**annotation, "bbox": np.array(box), "bbox_mode": BoxMode.XYXY_ABS})
    return annotations_to_instances(shown, size, mask_format="bitmask")
