"""A run's report, from what its evaluation wrote."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BitMasks, PolygonMasks
from omegaconf import DictConfig, OmegaConf

from ..data.custom import kind_of
from ..data.images import BadImage
from ..data.random_state import preserved_random_state
from ..engine.evaluation import INFERENCE
from ..errors import UserError
from ..results import Result
from .curves import curves
from .instances import report_instances
from .label_maps import report_label_maps
from .page import PAGE, update_curves, write_page
from .pictures import drawn
from .section import Section
from .segments import report_segments

REPORT = "report"
BATCH = 8  # training images that are shown
# What an evaluation wrote -> what looks at it.
SOURCES: dict[str, Callable[[str, Path], Section]] = {
    "panoptic.json": report_segments,
    "coco_instances_results.json": report_instances,
    "sem_seg_predictions.json": report_label_maps,
}
HEADLINES = {"bbox": ("AP", "AP50"), "segm": ("AP", "AP50"), "sem_seg": ("mIoU",), "panoptic_seg": ("PQ",)}  # fmt: skip
TITLES = {"bbox": "box", "segm": "mask", "sem_seg": "", "panoptic_seg": ""}


def update_report(cfg: DictConfig) -> Path | None:
    """Bring the curves of a run's report up to date; the model that it looks at stays.

    Args:
        cfg: the run's config.

    Returns:
        The page; None: there is none.
    """
    folder = Path(cfg.train.output_dir)
    page = folder / REPORT / PAGE
    return page if update_curves(page, curves(folder / "metrics.json")) else None


class RunReports:
    """The reports of one run; its training images are read and drawn once, for the first."""

    def __init__(self) -> None:
        self._batch: list[bytes] | None = None

    def write(self, cfg: DictConfig) -> Path:
        """`write_report` on the run's latest evaluation."""
        return write_report(cfg, self._training_images)

    def _training_images(self, cfg: DictConfig) -> list[bytes]:
        if self._batch is None:
            self._batch = training_images(cfg)
        return self._batch


def write_report(
    cfg: DictConfig, batch: Callable[[DictConfig], Sequence[bytes]] | None = None
) -> Path:
    """Write report/index.html into a run's folder.

    Args:
        cfg: the run's config, its data registered; `train.output_dir` holds evaluation.json, inference/ and
            perhaps metrics.json.
        batch: gives the training images that are shown; None: `training_images`.

    Returns:
        The page.

    Raises:
        UserError: there was no evaluation, or what it wrote cannot be read.
    """
    folder = Path(cfg.train.output_dir)
    try:
        evaluated = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        results: dict[str, dict[str, float | None]] = {
            task: {
                metric: None if value is None else float(value) for metric, value in found.items()
            }
            for task, found in evaluated["results"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{folder} holds no evaluation ({error}): comer-d2 eval makes one"
        ) from error
    names = OmegaConf.select(cfg, "dataloader.test.dataset.names")
    name = names if isinstance(names, str) else names[0]
    found = {file: folder / INFERENCE / file for file in SOURCES}
    sections = [
        SOURCES[file](name, path)
        for file, path in found.items()
        # A model of segments has objects, too, which are measured only with instance annotations.
        if path.is_file()
        and (file != "coco_instances_results.json" or MetadataCatalog.get(name).get("json_file"))
    ]
    if not sections:
        raise UserError(f"{folder / INFERENCE} holds no predictions: comer-d2 eval makes them")
    headlines = [
        (f"{TITLES[task]} {metric}".strip(), f"{value:.1f}")
        for task, metrics in HEADLINES.items()
        for metric in metrics
        if (value := results.get(task, {}).get(metric)) is not None
    ]
    iteration = evaluated.get("iteration")
    facts = [("data", name), ("images", str(len(DatasetCatalog.get(name))))]
    if iteration is not None:
        facts.insert(0, ("iterations", str(iteration + 1)))
    return write_page(
        folder / REPORT,
        title=folder.resolve().name,
        facts=facts,
        headlines=headlines,
        curves=curves(folder / "metrics.json"),
        sections=sections,
        batch=(batch or training_images)(cfg),
    )


def training_images(cfg: DictConfig, count: int = BATCH) -> list[bytes]:
    """The first training images as the network sees them.

    Args:
        cfg: the config, its data registered.
        count: how many.

    Returns:
        JPEGs with boxes, masks or labels drawn into them.
    """
    names = OmegaConf.select(cfg, "dataloader.train.dataset.names")
    name = names if isinstance(names, str) else names[0]
    mapper = instantiate(cfg.dataloader.train.mapper)
    classes = kind_of(name).classes
    bgr = cfg.dataloader.train.mapper.image_format == "BGR"
    pictures: list[bytes] = []
    with preserved_random_state():
        torch.manual_seed(0)
        for record in DatasetCatalog.get(name):
            if len(pictures) == count:
                break
            with suppress(BadImage):  # training has told of it
                mapped = mapper(record)
                if mapped is not None:
                    pictures.append(_draw(mapped, classes, bgr))
    return pictures


def _draw(mapped: dict[str, Any], names: list[str], bgr: bool) -> bytes:
    image = mapped["image"].numpy().transpose(1, 2, 0)
    image = np.ascontiguousarray(image[..., ::-1] if bgr else image)
    if "instances" not in mapped:
        return drawn(Result(image, names, label_map=mapped["sem_seg"].numpy()), "semantic")
    objects = mapped["instances"]
    masks = objects.gt_masks if objects.has("gt_masks") else None
    if isinstance(masks, PolygonMasks):
        masks = BitMasks.from_polygon_masks(masks, *image.shape[:2])
    return drawn(
        Result(
            image,
            names,
            boxes=objects.gt_boxes.tensor.numpy(),
            classes=objects.gt_classes.numpy(),
            masks=None if masks is None else masks.tensor.numpy(),
        ),
        "instance",
    )
