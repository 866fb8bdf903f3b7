"""COCO instances -> COCO panoptic: things are the instances, one class of stuff is all the rest."""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath

import numpy as np
import pycocotools.mask as mask_util
from tqdm import tqdm

from ..errors import UserError
from .coco_json import segmentation_problems
from .panoptic_png import write_panoptic_png


def panoptic_from_instances(
    json_file: str | os.PathLike,
    output: str | os.PathLike,
    *,
    background: str,
    progress: bool = True,
) -> None:
    """Write panoptic annotations beside instance annotations.

    Where instances overlap, the later one is on top. What is there already is replaced.

    Args:
        json_file: COCO instances, with masks.
        output: folder for the PNGs; the json is named after it, ``<output>.json``.
        background: name of the stuff class of pixels without an instance.
        progress: show a progress bar.

    A PNG has the path of its image below `output`, ending in .png; where two images differ in the
    ending alone, .png is added to it.

    Raises:
        UserError: a segmentation is missing or unsound; the message names the annotation.
    """
    content = json.loads(Path(json_file).read_text(encoding="utf-8"))
    output = Path(output)
    stuff = max(category["id"] for category in content["categories"]) + 1
    categories = [{**category, "isthing": 1} for category in content["categories"]]
    categories.append({"id": stuff, "name": background, "isthing": 0})
    of_image: dict[int, list[dict]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        of_image[annotation["image_id"]].append(annotation)

    names = _png_names([image["file_name"] for image in content["images"]])
    annotations = []
    folder = Path(tempfile.mkdtemp(dir=output.parent, prefix=f".{output.name}-"))
    try:
        for image in tqdm(content["images"], desc=f"panoptic {output.name}", disable=not progress):
            things = of_image[image["id"]]
            ids = np.full((image["height"], image["width"]), len(things) + 1, np.int32)
            for number, thing in enumerate(things, 1):
                ids[_mask(thing, image)] = number
            area = np.bincount(ids.flatten(), minlength=len(things) + 2).tolist()
            labels = [thing["category_id"] for thing in things] + [stuff]
            crowds = [thing.get("iscrowd", 0) for thing in things] + [0]
            info = [
                {"id": i, "category_id": label, "area": area[i], "iscrowd": crowd}
                for i, (label, crowd) in enumerate(zip(labels, crowds, strict=True), 1)
                if area[i]
            ]
            name = names[image["file_name"]]
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_panoptic_png(ids, folder / name)
            annotations.append({"image_id": image["id"], "file_name": name, "segments_info": info})
        folder.chmod(0o755)
        if output.exists():
            shutil.rmtree(output)
        os.replace(folder, output)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    panoptic = {"images": content["images"], "annotations": annotations, "categories": categories}
    part = output.with_suffix(".part")
    part.write_text(json.dumps(panoptic))
    os.replace(part, output.with_suffix(".json"))


def _png_names(file_names: Sequence[str]) -> dict[str, str]:
    stems = Counter(str(PurePath(name).with_suffix("")) for name in file_names)
    names = {}
    for name in file_names:
        path = PurePath(name)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"file_name {name!r} leads out of the folder of images")
        alone = stems[str(path.with_suffix(""))] == 1
        names[name] = str(path.with_suffix(".png")) if alone else f"{path}.png"
    return names


def _mask(annotation: dict, image: dict) -> np.ndarray:
    """Polygons or RLE, compressed or not -> (h, w) bool."""
    segmentation = annotation.get("segmentation")
    where = f"annotation {annotation['id']} of {image['file_name']}"
    if not segmentation:
        raise UserError(f"{where} has a box alone, and panoptic data are made of masks")
    if segmentation_problems(segmentation, image):
        raise UserError(
            f"{where} has no sound segmentation; comer-d2 data check says what is wrong"
        )
    height, width = image["height"], image["width"]
    if isinstance(segmentation, list) or isinstance(segmentation["counts"], list):
        segmentation = mask_util.frPyObjects(segmentation, height, width)
    rles = segmentation if isinstance(segmentation, list) else [segmentation]
    return mask_util.decode(mask_util.merge(rles)).astype(bool)
