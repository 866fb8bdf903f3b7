"""The user's own semantic and panoptic data: given once under `dataset.*`, checked, registered.

Semantic: label maps in folders, named as their images.

    dataset = dict(format="semantic", name="custom", train_images="...", train_masks="...",
                   val_images="...", val_masks="...", class_names=["road", ...])

Panoptic: COCO's format, a json and a folder of PNGs for each split.

    dataset = dict(format="panoptic", name="custom", train_json="...", train_images="...",
                   train_masks="...", val_json="...", val_images="...", val_masks="...")

:func:`comer_d2.d2.data.custom.resolve_dataset` comes here for these formats. (Instances are its own.)
"""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig
from PIL import Image

from ..errors import UserError
from .panoptic_json import load_panoptic
from .semantic_labels import IGNORE_LABEL

logger = logging.getLogger(__name__)

SPLITS = ("train", "val")
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
SHOWN = 3  # cases that an error names
_registered: set[str] = set()  # names that came from here and may be registered again


def resolve_semantic(cfg: DictConfig) -> None:
    """Check and register label maps in folders.

    Sets `cfg.dataset.num_classes` and registers `<name>_train` and `<name>_val`.

    Raises:
        UserError: naming what is wrong and where.
    """
    dataset = cfg.dataset
    class_names = _class_names(dataset)
    pairs = {
        split: _pair_files(dataset, f"{split}_images", f"{split}_masks", split) for split in SPLITS
    }
    dataset.class_names = class_names
    dataset.num_classes = len(class_names)
    for split in SPLITS:
        records = [
            {"file_name": str(image), "sem_seg_file_name": str(mask), "image_id": number}
            for number, (image, mask) in enumerate(pairs[split], 1)
        ]
        _register(
            f"{dataset.name}_{split}",
            lambda records=records: records,
            stuff_classes=class_names,
            ignore_label=dataset.get("ignore_label", IGNORE_LABEL),
            image_root=str(dataset[f"{split}_images"]),
            sem_seg_root=str(dataset[f"{split}_masks"]),
        )
    logger.info("Dataset %r: %d classes: %s", dataset.name, len(class_names), class_names)


def resolve_panoptic(cfg: DictConfig) -> None:
    """Check and register data in COCO's panoptic format.

    Class numbers: things first, then stuff, each in the order of their category ids. Sets
    `cfg.dataset.num_classes`, `num_things`, `class_names` and `stuff_classes` (numbers), and registers
    `<name>_train` and `<name>_val`. With `dataset.<split>_instances`, a COCO instances file of the
    same images and things, instance AP can be measured too.

    Raises:
        UserError: naming what is wrong and where.
    """
    dataset = cfg.dataset
    categories = {split: _check_panoptic(dataset, split) for split in SPLITS}
    if categories["train"] != categories["val"]:
        raise UserError(
            f"dataset {dataset.name!r}: the categories of {dataset.train_json} and "
            f"{dataset.val_json} differ; give both the same list"
        )
    ordered = sorted(categories["train"], key=lambda c: (not c["isthing"], c["id"]))
    classes = {category["id"]: number for number, category in enumerate(ordered)}
    things = {classes[c["id"]] for c in ordered if c["isthing"]}
    dataset.class_names = names = [category["name"] for category in ordered]
    dataset.num_classes = len(names)
    dataset.num_things = len(things)
    dataset.stuff_classes = sorted(set(classes.values()) - things)
    for split in SPLITS:
        paths = [str(dataset[f"{split}_{part}"]) for part in ("json", "images", "masks")]
        instances = dataset.get(f"{split}_instances")
        _register(
            f"{dataset.name}_{split}",
            lambda paths=paths: load_panoptic(*paths, classes, things),
            thing_classes=names[: len(things)],
            stuff_classes=names,
            thing_dataset_id_to_contiguous_id={i: n for i, n in classes.items() if n in things},
            stuff_dataset_id_to_contiguous_id={i: n for i, n in classes.items() if n not in things},
            image_root=paths[1],
            panoptic_json=paths[0],
            panoptic_root=paths[2],
            ignore_label=IGNORE_LABEL,
            **({"json_file": str(instances)} if instances else {}),
        )
    logger.info(
        "Dataset %r: %d things, %d stuff: %s",
        dataset.name, len(things), len(names) - len(things), names,
    )  # fmt: skip


def _class_names(dataset: DictConfig) -> list[str]:
    names = dataset.get("class_names")
    if isinstance(names, str):  # a file with one name on each line
        if not Path(names).is_file():
            raise UserError(
                f"dataset.class_names={names}: no such file; give a file with one class on each "
                "line, or a list"
            )
        names = [
            line.strip() for line in Path(names).read_text("utf-8").splitlines() if line.strip()
        ]
    if not names:
        raise UserError(
            f"dataset {dataset.name!r}: label maps hold numbers only: give dataset.class_names, "
            "the names of labels 0, 1, ... (a list, or a file with one on each line)"
        )
    if dataset.get("num_classes") not in (None, len(names)):
        raise UserError(
            f"dataset.num_classes is {dataset.num_classes}, but dataset.class_names has "
            f"{len(names)} names; leave it out"
        )
    return list(names)


def _pair_files(
    dataset: DictConfig, images_key: str, masks_key: str, split: str
) -> list[tuple[Path, Path]]:
    """Every image with the mask of its name; their sizes agree."""
    folders = {key: _folder(dataset, key) for key in (images_key, masks_key)}
    images = _files_by_stem(folders[images_key], IMAGE_ENDINGS)
    masks = _files_by_stem(folders[masks_key], (".png",))
    problems = []
    for what, names in (
        (f"images without a mask <name>.png in {folders[masks_key]}", set(images) - set(masks)),
        (f"masks without an image in {folders[images_key]}", set(masks) - set(images)),
    ):
        if names:
            problems.append(_summarise(what, sorted(names)))
    if not images:
        problems.append(f"no images in {folders[images_key]}")
    both = sorted(set(images) & set(masks))
    sizes = [(n, _size(images[n]), _size(masks[n])) for n in both]
    wrong = [f"{masks[n]} is {b}, its image {a}" for n, a, b in sizes if a != b]
    if wrong:
        problems.append(_summarise("masks of another size than their image", wrong))
    if problems:
        raise UserError(f"dataset {dataset.name!r}, {split}:\n  " + "\n  ".join(problems))
    return [(images[name], masks[name]) for name in both]


def _folder(dataset: DictConfig, key: str) -> Path:
    value = dataset.get(key)
    if not value or not Path(value).is_dir():
        hint = f" ({dataset.hint})" if dataset.get("hint") else ""
        raise UserError(f"dataset.{key}={value or ''}: no such folder{hint}")
    return Path(value)


def _files_by_stem(folder: Path, endings: tuple[str, ...]) -> dict[str, Path]:
    """Path below the folder without ending -> file."""
    return {
        str(path.relative_to(folder).with_suffix("")): path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in endings
    }


def _size(path: Path) -> tuple[int, int]:
    """(width, height); only the file's head is read."""
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise UserError(f"{path}: cannot be read as an image ({error})") from error


def _check_panoptic(dataset: DictConfig, split: str) -> list[dict[str, Any]]:
    """What would stop a training on a panoptic json; returns its categories."""
    key = f"dataset.{split}_json={dataset.get(f'{split}_json') or ''}"
    path = Path(dataset.get(f"{split}_json") or "")
    if not path.is_file():
        hint = f"; {dataset.hint}" if dataset.get("hint") else ""
        raise UserError(f"{key}: there is no such file{hint}")
    images, masks = _folder(dataset, f"{split}_images"), _folder(dataset, f"{split}_masks")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        categories = [
            {"id": c["id"], "name": c["name"], "isthing": bool(c["isthing"])}
            for c in content["categories"]
        ]
        listed = {image["id"]: image for image in content["images"]}
        annotations = content["annotations"]
        problems = _panoptic_problems(
            annotations, listed, {c["id"] for c in categories}, images, masks
        )
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{key}: not in COCO's panoptic format ({error!r})") from error
    if problems:
        raise UserError(f"{key}:\n  " + "\n  ".join(problems))
    return categories


def _panoptic_problems(
    annotations: list[dict[str, Any]],
    listed: dict[Any, dict[str, Any]],
    categories: set[int],
    images: Path,
    masks: Path,
) -> list[str]:
    cases = {
        "annotations of an image that is not listed (image_id)": [
            str(a["image_id"]) for a in annotations if a["image_id"] not in listed
        ],
        f"images without a file in {images}": [
            i["file_name"] for i in listed.values() if not (images / i["file_name"]).is_file()
        ],
        f"annotations without a file in {masks}": [
            a["file_name"] for a in annotations if not (masks / a["file_name"]).is_file()
        ],
        "segments of a category that is not listed (category_id)": [
            f"{a['file_name']}: {s['category_id']}"
            for a in annotations
            for s in a["segments_info"]
            if s["category_id"] not in categories
        ],
    }
    if not annotations:
        return ["there are no annotations"]
    return [_summarise(what, found) for what, found in cases.items() if found]


def _summarise(what: str, cases: list[str]) -> str:
    more = ", ..." if len(cases) > SHOWN else ""
    return f"{len(cases)} {what}: {', '.join(cases[:SHOWN])}{more}"


def _register(name: str, load: Callable[[], list[dict[str, Any]]], **metadata: Any) -> None:
    if name in _registered:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    elif name in DatasetCatalog:
        raise UserError(f"Detectron2 already has a dataset {name!r}; choose another dataset.name")
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)
    _registered.add(name)
