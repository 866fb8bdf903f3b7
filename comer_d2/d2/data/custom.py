"""The user's own COCO-format data: given once under `dataset.*`, checked, registered.

A config that trains on it has a sixth name beside Detectron2's five:

    dataset = dict(name="custom", train_json="...", train_images="...", val_json="...",
                   val_images="...", num_classes=None, class_names=None)

with `dataloader.train.dataset.names="${dataset.name}_train"` and
`model.roi_heads.num_classes="${dataset.num_classes}"`. `resolve_dataset(cfg)` fills in the last two
keys from the json, after the command line's overrides were applied.
"""

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from omegaconf import DictConfig, OmegaConf

from ..errors import UserError
from .custom_segmentation import resolve_panoptic, resolve_semantic

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")
IMAGE_KEYS = ("id", "file_name", "width", "height")
ANNOTATION_KEYS = ("id", "image_id", "category_id", "bbox", "area")
BOX_TOLERANCE = 1.0  # pixels a box may reach over its image's edge: tools round differently
_registered: set[str] = set()  # names that came from here and may be registered again


class DatasetError(UserError):
    """A dataset that cannot be used; the message lists every problem and the file it is in."""


def resolve_dataset(cfg: DictConfig) -> None:
    """Check and register `cfg.dataset`, and let its classes flow into the model.

    Call it after overrides and before anything is instantiated. A config without `dataset` is left
    as it is. Sets `cfg.dataset.num_classes` and `cfg.dataset.class_names` in place and registers
    `<name>_train` and `<name>_val` with Detectron2's catalogs.

    Args:
        cfg: a whole LazyConfig.

    Raises:
        DatasetError: the data or `cfg.dataset` is wrong; the message names file, count and fix.
    """
    if "dataset" not in cfg:
        return
    dataset = cfg.dataset
    if dataset.get("format", "instances") != "instances":
        resolvers = {"semantic": resolve_semantic, "panoptic": resolve_panoptic}
        if dataset.format not in resolvers:
            raise DatasetError(
                f"dataset.format={dataset.format!r}: use instances, semantic or panoptic"
            )
        return resolvers[dataset.format](cfg)
    masks = bool(OmegaConf.select(cfg, "dataloader.train.mapper.use_instance_mask", default=False))
    problems: list[str] = []
    categories: dict[str, dict[int, str]] = {}
    for split in SPLITS:
        found, categories[split] = check_coco(
            dataset[f"{split}_json"], dataset[f"{split}_images"], need_masks=masks
        )
        problems += [f"dataset.{split}_json={dataset[f'{split}_json']}: {line}" for line in found]
    if not problems and categories["train"] != categories["val"]:
        problems.append(_describe_mismatch(dataset, categories["train"], categories["val"]))
    if problems:
        absent = any(not Path(dataset[f"{split}_json"]).is_file() for split in SPLITS)
        if absent and dataset.get("hint"):
            problems.append(dataset.hint)
        raise DatasetError(f"dataset {dataset.name!r}:\n  " + "\n  ".join(problems))

    class_names = [name for _, name in sorted(categories["train"].items())]
    _set_classes(cfg, class_names)
    for split in SPLITS:
        _register(f"{dataset.name}_{split}", dataset[f"{split}_json"], dataset[f"{split}_images"])
    logger.info("Dataset %r: %d classes: %s", dataset.name, len(class_names), class_names)


def check_coco(
    json_file: str, images: str, *, need_masks: bool
) -> tuple[list[str], dict[int, str]]:
    """Look for what would stop or silently spoil a training in a COCO instances file.

    Args:
        json_file: path of the json.
        images: folder its file names are relative to.
        need_masks: annotations without a segmentation are a problem.

    Returns:
        One line for each kind of problem, with the number of cases and the first of them; and
        category id -> name. The images are looked for, not opened.
    """
    if not json_file or not Path(json_file).is_file():
        return ["there is no such file"], {}
    if not images or not Path(images).is_dir():
        return [f"its folder of images, {str(images)!r}, does not exist"], {}
    try:
        content = json.loads(Path(json_file).read_text(encoding="utf-8"))
    except ValueError as error:
        return [f"not valid json ({error})"], {}
    if not isinstance(content, dict):
        return ["not in COCO format: the top level has to be an object"], {}
    missing = [key for key in ("images", "annotations", "categories") if not content.get(key)]
    if missing:
        return [f"{' and '.join(missing)} missing or empty"], {}

    problems = _check_fields(content)
    if problems:  # what follows reads those fields
        return problems, {}
    categories = {category["id"]: category["name"] for category in content["categories"]}
    cases = _find_cases(content, categories, Path(images))
    if need_masks:
        boxes_only = (
            "annotations without a segmentation (to train on boxes alone, use "
            "configs/custom/faster_rcnn_comer_s.py, or cascade_rcnn, atss, gfl or dino there)"
        )
        cases[boxes_only] = [
            f"annotation {a['id']}"
            for a in content["annotations"]
            if not a.get("segmentation") and not a.get("iscrowd", 0)
        ]
    return [_summarise(what, found) for what, found in cases.items() if found], categories


def _find_cases(
    content: dict[str, Any], categories: dict[int, str], folder: Path
) -> dict[str, list[str]]:
    """Kind of problem -> its cases, of a file in which all keys are there."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in content["images"]}
    annotations = content["annotations"]
    return {
        f"images without a file in {folder}": [
            image["file_name"]
            for image in content["images"]
            if not (folder / image["file_name"]).is_file()
        ],
        "annotations of an image that is not listed (image_id)": [
            f"annotation {a['id']}: {a['image_id']}"
            for a in annotations
            if a["image_id"] not in sizes
        ],
        "annotations of a category that is not listed (category_id)": [
            f"annotation {a['id']}: {a['category_id']}"
            for a in annotations
            if a["category_id"] not in categories
        ],
        "boxes of zero size or outside their image (bbox is [x, y, width, height])": [
            f"annotation {a['id']}: {a['bbox']}"
            for a in annotations
            if a["image_id"] in sizes and not _box_is_inside(a["bbox"], sizes[a["image_id"]])
        ],
        # COCO's evaluation stores the matched id, and 0 there means "no match".
        "annotations with id 0 (ids have to start at 1)": [
            f"image {a['image_id']}" for a in annotations if a["id"] == 0
        ],
    }


def _check_fields(content: dict[str, Any]) -> list[str]:
    """Missing keys and repeated ids, one line for each kind."""
    problems = []
    for part, keys in (
        ("images", IMAGE_KEYS),
        ("annotations", ANNOTATION_KEYS),
        ("categories", ("id", "name")),
    ):
        entries = content[part]
        for key in keys:
            without = [f"number {i}" for i, entry in enumerate(entries) if key not in entry]
            if without:
                problems.append(_summarise(f"{part} without {key!r}", without))
        ids = [entry["id"] for entry in entries if "id" in entry]
        seen: set[Any] = set()
        repeated = [str(i) for i in ids if i in seen or seen.add(i)]
        if repeated:
            problems.append(_summarise(f"{part} whose id another one has", repeated))
    return problems


def _box_is_inside(box: list[float], size: tuple[int, int]) -> bool:
    if len(box) != 4:
        return False
    x, y, width, height = box
    return (
        width > 0
        and height > 0
        and min(x, y) >= -BOX_TOLERANCE
        and x + width <= size[0] + BOX_TOLERANCE
        and y + height <= size[1] + BOX_TOLERANCE
    )


def _summarise(what: str, cases: Iterable[str]) -> str:
    cases = list(cases)
    more = ", ..." if len(cases) > 3 else ""
    return f"{len(cases)} {what}: {', '.join(cases[:3])}{more}"


def _describe_mismatch(dataset: DictConfig, train: dict[int, str], val: dict[int, str]) -> str:
    only_train = sorted(set(train.items()) - set(val.items()))
    only_val = sorted(set(val.items()) - set(train.items()))
    return (
        f"the categories of {dataset.train_json} and {dataset.val_json} differ; (id, name) only in "
        f"the first: {only_train}; only in the second: {only_val}. Give both the same list"
    )


def _set_classes(cfg: DictConfig, class_names: list[str]) -> None:
    dataset = cfg.dataset
    count = len(class_names)
    if dataset.get("num_classes") not in (None, count):
        raise DatasetError(
            f"dataset.num_classes is {dataset.num_classes}, but {dataset.train_json} has {count} "
            "categories; leave it out"
        )
    dataset.num_classes = count
    dataset.class_names = class_names
    in_model = OmegaConf.select(cfg, "model.roi_heads.num_classes")
    if in_model is not None and in_model != count:
        raise DatasetError(
            f"model.roi_heads.num_classes is {in_model}, but {dataset.train_json} has {count} "
            'categories; leave it at "${dataset.num_classes}"'
        )


def _register(name: str, json_file: str, images: str) -> None:
    if name in _registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    elif name in DatasetCatalog:
        raise DatasetError(
            f"Detectron2 already has a dataset {name!r}; choose another dataset.name"
        )
    register_coco_instances(name, {}, str(json_file), str(images))
    _registered.add(name)
