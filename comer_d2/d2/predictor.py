"""Prediction on single images from a LazyConfig and a checkpoint."""

import os
from collections.abc import Sequence
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.detection_utils import annotations_to_instances, read_image
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import BoxMode, Instances
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from .data.custom import resolve_dataset
from .engine.checkpoint import forget_pretrained, load_checkpoint
from .engine.config import settle_device
from .errors import UserError
from .modeling.images import refuse_to_cut
from .visualization.instances import draw_instances


class Predictor:
    """A detector that takes one image at a time, prepared as the config's test data is.

    Args:
        cfg: a whole LazyConfig: a config file of this project, or the `config.yaml` that training
            leaves beside its checkpoints.
        checkpoint: file with the model's weights; every parameter has to be in it.
        device: where to run; the default is `cfg.train.device`, or the CPU without CUDA.

    Raises:
        UserError: the checkpoint cannot be read, or its weights are not exactly this model's.
    """

    def __init__(
        self,
        cfg: DictConfig,
        checkpoint: str | os.PathLike,
        *,
        device: str | torch.device | None = None,
    ) -> None:
        self.class_names = class_names_of(cfg)
        mapper = cfg.dataloader.test.mapper
        self.image_format: str = mapper.image_format
        self.augmentation = T.AugmentationList(list(instantiate(mapper.augmentations)))
        if device is None:
            settle_device(cfg.train)
        self.device = torch.device(device or cfg.train.device)
        forget_pretrained(cfg.model)
        self.model = instantiate(cfg.model).to(self.device).eval()
        refuse_to_cut(self.model)
        load_checkpoint(self.model, os.fspath(checkpoint), complete=True)

    def __call__(self, image: str | os.PathLike | np.ndarray) -> Instances:
        """Detect the objects of one image.

        Args:
            image: path of an image file, or (h, w, 3) uint8, RGB.

        Returns:
            Instances on the CPU, in the image's own coordinates, best score first: `pred_boxes`,
            `scores`, `pred_classes` and, from a model with masks, `pred_masks` (n, h, w) bool.
        """
        return self.outputs(image)["instances"].to("cpu")

    @torch.no_grad()
    def outputs(self, image: str | os.PathLike | np.ndarray) -> dict[str, Any]:
        """Predict everything the model predicts of one image.

        Args:
            image: path of an image file, or (h, w, 3) uint8, RGB.

        Returns:
            The model's output, on its device and in the image's own coordinates: `instances`,
            `sem_seg` (classes, h, w), `panoptic_seg` (ids (h, w), segments), or some of them.
        """
        if not isinstance(image, np.ndarray):
            image = read_rgb(image)
        height, width = image.shape[:2]
        if self.image_format == "BGR":
            image = image[:, :, ::-1]
        prepared = T.AugInput(np.ascontiguousarray(image))
        self.augmentation(prepared)
        tensor = torch.as_tensor(np.ascontiguousarray(prepared.image.transpose(2, 0, 1)))
        inputs = {"image": tensor.to(self.device), "height": height, "width": width}
        return self.model([inputs])[0]


def read_rgb(path: str | os.PathLike) -> np.ndarray:
    """Read an image file, turned upright where its EXIF data ask for it.

    Args:
        path: of the file.

    Returns:
        (h, w, 3) uint8, RGB.

    Raises:
        UserError: there is no such file, or it is no image.
    """
    try:
        return read_image(os.fspath(path), format="RGB")
    except OSError as error:  # Pillow's UnidentifiedImageError is one
        raise UserError(f"image '{os.fspath(path)}' cannot be read: {error}") from error


def class_names_of(cfg: DictConfig) -> list[str]:
    """Names of the classes that a config's model predicts.

    Args:
        cfg: a whole LazyConfig. Its `dataset`, when it has one, is resolved unless an earlier
            training already did (then the data itself need not be here).

    Returns:
        One name per class; numbers when the test dataset has no names.
    """
    if "dataset" in cfg:
        if not (cfg.dataset.get("class_names") and cfg.dataset.get("num_classes")):
            resolve_dataset(cfg)
        return list(cfg.dataset.class_names)
    names = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    name = names if isinstance(names, str) or names is None else names[0]
    metadata = MetadataCatalog.get(name) if name else None
    if "sem_seg_head" in cfg.model:
        known = metadata.get("stuff_classes") or metadata.get("thing_classes") if metadata else None
        head = cfg.model.sem_seg_head
        count = head.predictor.num_classes if "predictor" in head else head.num_classes
    else:
        known = metadata.get("thing_classes") if metadata else None
        count = cfg.model["roi_heads" if "roi_heads" in cfg.model else "head"].num_classes
    return list(known) if known else [str(i) for i in range(count)]


def confident(instances: Instances, threshold: float) -> Instances:
    """Keep the predictions whose score is at least `threshold`."""
    return instances[instances.scores >= threshold]


def coco_results(instances: Instances, image_id: str, class_names: Sequence[str]) -> list[dict]:
    """Predictions of one image in COCO's results format.

    Args:
        instances: what a `Predictor` returns.
        image_id: put into every entry.
        class_names: name of each class.

    Returns:
        One dict for each: image_id, category_id (index into `class_names`), category (its name),
        bbox [x, y, width, height], score and, with masks, segmentation (compressed RLE).
    """
    entries = instances_to_coco_json(instances, image_id)
    return [{**entry, "category": class_names[entry["category_id"]]} for entry in entries]


def compare_with_ground_truth(
    predictor: Predictor,
    dataset_name: str,
    *,
    count: int,
    threshold: float = 0.5,
    picture_side: int = 256,
    progress: bool = True,
) -> list[tuple[Image.Image, Image.Image]]:
    """Draw the first images of a registered dataset, ground truth and prediction.

    Args:
        predictor: the detector.
        dataset_name: a name in Detectron2's catalog.
        count: number of images.
        threshold: predictions below this score are left out.
        picture_side: length of the longer side of each picture, pixels.
        progress: show a progress bar.

    Returns:
        (ground truth, prediction) of each image, for `drawing.picture_sheet`.
    """
    records = get_detection_dataset_dicts(dataset_name, filter_empty=False)[:count]
    pairs = []
    for record in tqdm(records, desc="pictures", unit="image", disable=not progress):
        image = read_rgb(record["file_name"])
        scale = picture_side / max(image.shape[:2])
        found = confident(predictor(image), threshold)
        truth = _ground_truth(record["annotations"], image.shape[:2])
        pairs.append(
            (
                draw_instances(image, truth, predictor.class_names, scale=scale),
                draw_instances(image, found, predictor.class_names, scale=scale),
            )
        )
    return pairs


def _ground_truth(annotations: Sequence[dict], size: tuple[int, int]) -> Instances:
    """A record's annotations as Instances; masks, where there are any, as (n, h, w) bool."""
    shown = []
    for annotation in annotations:
        if annotation.get("iscrowd", 0):
            continue
        box = BoxMode.convert(annotation["bbox"], annotation["bbox_mode"], BoxMode.XYXY_ABS)
        shown.append({**annotation, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS})
    truth = annotations_to_instances(shown, size, mask_format="bitmask")
    if truth.has("gt_masks"):
        truth.gt_masks = truth.gt_masks.tensor
    return truth
