"""Instances for a model, images without any among them."""

import os
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, BoxMode, PolygonMasks
from PIL import Image

from comer_d2.d2.data.images import BadImage, check_image, read_image
from comer_d2.d2.data.mappers import InstanceMapper
from comer_d2.d2.errors import UserError


@pytest.fixture
def record(tmp_path: Path) -> dict[str, Any]:
    Image.fromarray(np.zeros((8, 12, 3), np.uint8)).save(tmp_path / "a.png")
    annotation = {
        "bbox": [2, 1, 4, 3],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": 1,
        "iscrowd": 0,
        "segmentation": [[2, 1, 6, 1, 6, 4, 2, 4]],
    }
    size = {"height": 8, "width": 12}
    return {"file_name": str(tmp_path / "a.png"), "annotations": [annotation], **size}


def mapper(**options: Any) -> InstanceMapper:
    given = {"augmentations": [T.RandomFlip(1.0)], "image_format": "RGB", "use_instance_mask": True}
    return InstanceMapper(True, **{**given, **options})


def test_objects_move_with_the_image(record: dict[str, Any]) -> None:
    output = mapper(recompute_boxes=True, instance_mask_format="bitmask")(record)
    assert output["instances"].gt_boxes.tensor.tolist() == [[6, 1, 10, 4]]
    assert output["instances"].gt_masks.tensor.sum() == 12
    assert output["image"].shape == (3, 8, 12)
    assert record["annotations"][0]["bbox"] == [2, 1, 4, 3]  # for the next epoch


@pytest.mark.parametrize("recompute_boxes", [True, False])
@pytest.mark.parametrize("kind", ["bitmask", "polygon"])
@pytest.mark.parametrize("crowd", [True, False])
def test_backgrounds_have_no_masks_rather_than_none_at_all(
    record: dict[str, Any], recompute_boxes: bool, kind: str, crowd: bool
) -> None:
    record["annotations"] = [{**a, "iscrowd": 1} for a in record["annotations"]] if crowd else []
    instances = mapper(recompute_boxes=recompute_boxes, instance_mask_format=kind)(record)[
        "instances"
    ]
    assert len(instances) == 0 and instances.gt_boxes.tensor.shape == (0, 4)
    assert isinstance(instances.gt_masks, BitMasks if kind == "bitmask" else PolygonMasks)
    assert instances.gt_classes.dtype == torch.int64
    without = mapper(use_instance_mask=False)(record)["instances"]
    assert not without.has("gt_masks")


def test_what_is_wrong_names_the_file(record: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"a\.png is 12 x 8 pixels, but its annotations say 11 x 8"):
        mapper()({**record, "width": 11})
    path = Path(record["file_name"])
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(BadImage, match=r"a\.png: the image cannot be read"):
        mapper()(record)


def test_an_image_of_which_nothing_is_left_is_named(record: dict[str, Any]) -> None:
    Image.new("RGB", (3000, 2)).save(record["file_name"])
    resize = [T.ResizeShortestEdge(48, max_size=96)]
    with pytest.raises(BadImage, match=r"a\.png: an image of 3000 x 2 pixels cannot be resized"):
        mapper(augmentations=resize)({**record, "width": 3000, "height": 2, "annotations": []})


@pytest.mark.parametrize("read", [check_image, read_image])
def test_a_pipe_is_not_waited_for(tmp_path: Path, read: Any) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(BadImage, match=r"a\.png: no file, but a folder, a pipe or a device"):
        read(tmp_path / "a.png")
