"""ADE20K as downloaded -> label maps and panoptic maps as they are trained on."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES
from PIL import Image
from tqdm import tqdm

from ..errors import UserError
from .builtin import ADE20K_THINGS
from .panoptic_png import write_panoptic_png

SPLITS = {"train": "training", "val": "validation"}
NUM_CLASSES = len(ADE20K_SEM_SEG_CATEGORIES)


def prepare_semantic(root: Path, *, progress: bool = True) -> None:
    """``annotations/`` (0 other, 1 to 150) -> ``annotations_detectron2/`` (0 to 149, 255 other).

    Files that are there already are kept: each is written under another name first.

    Args:
        root: the folder ADEChallengeData2016.
        progress: show a progress bar.

    Raises:
        UserError: naming the file that is missing or wrong.
    """
    for folder in SPLITS.values():
        target = root / "annotations_detectron2" / folder
        target.mkdir(parents=True, exist_ok=True)
        for image in tqdm(_images(root, folder), desc=f"labels, {folder}", disable=not progress):
            path = target / f"{image.stem}.png"
            if path.exists():
                continue
            labels = _read_labels(root, folder, image)
            part = path.with_name(f".{path.name}.part")
            # 0 becomes 255, which is ignored.
            Image.fromarray(labels - np.uint8(1)).save(part, format="PNG")
            os.replace(part, path)


def prepare_panoptic(root: Path, *, progress: bool = True) -> None:
    """``annotations/`` and ``annotations_instance/`` -> ``ade20k_panoptic_{train,val}``, png and json.

    Things are those of the instance annotations, laid over the stuff of the label maps, as in the
    published evaluations. Things without an instance stay void.

    Args:
        root: the folder ADEChallengeData2016.
        progress: show a progress bar.

    Raises:
        UserError: naming the file that is missing or wrong.
    """
    categories = [
        {"id": i, "name": name, "isthing": int(i in ADE20K_THINGS)}
        for i, name in enumerate(ADE20K_SEM_SEG_CATEGORIES)
    ]
    for split, folder in SPLITS.items():
        target = root / f"ade20k_panoptic_{split}"
        target.mkdir(exist_ok=True)
        images, annotations = [], []
        for image in tqdm(_images(root, folder), desc=f"segments, {folder}", disable=not progress):
            labels = _read_labels(root, folder, image)
            things = _read_instances(root, folder, image)
            ids, info = _merge(labels, things, root / "annotations_instance" / folder / image.name)
            name = f"{image.stem}.png"
            write_panoptic_png(ids, target / name)
            height, width = ids.shape
            images.append(
                {"id": image.stem, "file_name": image.name, "width": width, "height": height}
            )
            annotations.append({"image_id": image.stem, "file_name": name, "segments_info": info})
        content = {"images": images, "annotations": annotations, "categories": categories}
        part = target.with_suffix(".part")
        part.write_text(json.dumps(content))
        os.replace(part, target.with_suffix(".json"))


def _merge(
    labels: np.ndarray, things: np.ndarray, path: Path
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Label map (1 to 150) and instances (class 1 to 100, number) -> segment ids and their info."""
    ids = np.zeros(labels.shape, np.int32)
    found: list[tuple[int, np.ndarray]] = []
    for label in np.unique(labels).tolist():
        if label > 0 and label - 1 not in ADE20K_THINGS:
            found.append((label - 1, labels == label))
    for number in np.unique(things[..., 1]).tolist():
        if number == 0:
            continue
        mask = things[..., 1] == number
        classes = np.unique(things[..., 0][mask]).tolist()
        if len(classes) != 1 or not 1 <= classes[0] <= len(ADE20K_THINGS):
            raise UserError(f"{path}: instance {number} has classes {classes}, not one of 1 to 100")
        found.append((ADE20K_THINGS[classes[0] - 1], mask))
    for number, (_, mask) in enumerate(found, 1):
        ids[mask] = number
    area = np.bincount(ids.flatten(), minlength=len(found) + 1).tolist()
    info = [
        {"id": number, "category_id": label, "area": area[number], "iscrowd": 0}
        for number, (label, _) in enumerate(found, 1)
        if area[number]  # a thing may cover the whole of a stuff
    ]
    return ids, info


def _images(root: Path, folder: str) -> list[Path]:
    images = sorted((root / "images" / folder).glob("*.jpg"))
    if not images:
        raise UserError(
            f"{root / 'images' / folder}: no .jpg files; unpack ADEChallengeData2016.zip"
        )
    return images


def _read_labels(root: Path, folder: str, image: Path) -> np.ndarray:
    labels = _read(root / "annotations" / folder / f"{image.stem}.png", image, channels=1)
    if labels.max(initial=0) > NUM_CLASSES:
        raise UserError(
            f"{root / 'annotations' / folder / image.stem}.png: label {labels.max()} is more than "
            f"{NUM_CLASSES}"
        )
    return labels


def _read_instances(root: Path, folder: str, image: Path) -> np.ndarray:
    return _read(root / "annotations_instance" / folder / f"{image.stem}.png", image, channels=3)


def _read(path: Path, image: Path, channels: int) -> np.ndarray:
    try:
        with Image.open(path) as picture, Image.open(image) as of:
            if picture.size != of.size:
                raise UserError(f"{path} is {picture.size}, its image {image} is {of.size}")
            found = np.asarray(picture)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error})") from error
    if found.dtype != np.uint8 or (found.shape[2] if found.ndim == 3 else 1) != channels:
        raise UserError(f"{path}: expected {channels} channels of 8 bits, found {picture.mode}")
    return found
