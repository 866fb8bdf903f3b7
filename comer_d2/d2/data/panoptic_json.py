"""COCO's panoptic annotations as Detectron2 dataset dicts."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def load_panoptic(
    json_file: str, images: str, masks: str, classes: Mapping[int, int], things: set[int]
) -> list[dict[str, Any]]:
    """Read a COCO panoptic file.

    Detectron2's own reader takes images to be .jpg files named as their masks, and their ids to be
    numbers; this one goes by the json's list of images.

    Args:
        json_file: with `images`, `annotations` and `categories`.
        images: folder of the images.
        masks: folder of the PNGs.
        classes: category id -> class number.
        things: class numbers of things.

    Returns:
        Dataset dicts with `file_name`, `image_id`, `height`, `width`, `pan_seg_file_name` and
        `segments_info`, where `category_id` is a class number and `isthing` is added.
    """
    content = json.loads(Path(json_file).read_text(encoding="utf-8"))
    by_id = {image["id"]: image for image in content["images"]}
    records = []
    for annotation in content["annotations"]:
        image = by_id[annotation["image_id"]]
        segments = [
            {**segment, "category_id": (label := classes[segment["category_id"]])}
            | {"isthing": label in things}
            for segment in annotation["segments_info"]
        ]
        records.append(
            {
                "file_name": str(Path(images) / image["file_name"]),
                "image_id": image["id"],
                "height": image["height"],
                "width": image["width"],
                "pan_seg_file_name": str(Path(masks) / annotation["file_name"]),
                "segments_info": segments,
            }
        )
    return records
