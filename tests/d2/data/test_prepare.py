"""Preparation of public data, and panoptic annotations made of instances."""

import json
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from comer_d2.d2.data.panoptic_from_instances import panoptic_from_instances
from comer_d2.d2.data.panoptic_png import read_panoptic_png
from comer_d2.d2.data.prepare_ade20k import prepare_panoptic, prepare_semantic
from comer_d2.d2.errors import UserError

WALL, BED, SKY = 1, 8, 3  # as in ADE20K's label maps


@pytest.fixture
def ade20k(tmp_path: Path) -> Path:
    labels = np.zeros((4, 6), np.uint8)
    labels[:, :2], labels[:, 2:4], labels[0, 4:] = WALL, BED, SKY
    instances = np.zeros((4, 6, 3), np.uint8)
    instances[:2, 2:4] = (1, 1, 0)  # the first class of instances: bed
    instances[2:, 1:4] = (1, 2, 0)  # another bed, over some wall
    for folder in ("training", "validation"):
        for kind in ("images", "annotations", "annotations_instance"):
            (tmp_path / kind / folder).mkdir(parents=True)
        Image.new("RGB", (6, 4)).save(tmp_path / "images" / folder / "ADE_1.jpg")
        Image.fromarray(labels).save(tmp_path / "annotations" / folder / "ADE_1.png")
        Image.fromarray(instances).save(tmp_path / "annotations_instance" / folder / "ADE_1.png")
    return tmp_path


def test_ade20k_labels(ade20k: Path) -> None:
    prepare_semantic(ade20k, progress=False)
    labels = np.asarray(Image.open(ade20k / "annotations_detectron2/training/ADE_1.png"))
    assert labels[0].tolist() == [0, 0, 7, 7, 2, 2]
    assert labels[1, 4:].tolist() == [255, 255]


def test_ade20k_segments(ade20k: Path) -> None:
    prepare_panoptic(ade20k, progress=False)
    content = json.loads((ade20k / "ade20k_panoptic_val.json").read_text())
    (annotation,) = content["annotations"]
    ids = read_panoptic_png(ade20k / "ade20k_panoptic_val" / annotation["file_name"])
    classes = {0: None} | {s["id"]: s["category_id"] for s in annotation["segments_info"]}
    assert [classes[i] for i in ids[0].tolist()] == [0, 0, 7, 7, 2, 2]
    assert [classes[i] for i in ids[3].tolist()] == [0, 7, 7, 7, None, None]
    assert ids[0, 2] != ids[3, 2]
    assert [s["area"] for s in annotation["segments_info"]] == [6, 2, 4, 6]
    assert sum(category["isthing"] for category in content["categories"]) == 100


def test_ade20k_that_is_wrong(ade20k: Path) -> None:
    path = ade20k / "annotations/training/ADE_1.png"
    Image.fromarray(np.full((4, 6), 151, np.uint8)).save(path)
    with pytest.raises(UserError, match=r"ADE_1\.png: label 151 is more than 150"):
        prepare_semantic(ade20k, progress=False)
    Image.fromarray(np.zeros((4, 5), np.uint8)).save(path)
    with pytest.raises(UserError, match=r"ADE_1\.png is \(5, 4\), its image .* \(6, 4\)"):
        prepare_semantic(ade20k, progress=False)
    path.unlink()
    with pytest.raises(UserError, match=r"ADE_1\.png: cannot be read"):
        prepare_semantic(ade20k, progress=False)
    with pytest.raises(UserError, match=r"unpack ADEChallengeData2016\.zip"):
        prepare_semantic(ade20k / "images", progress=False)


def test_instances_with_the_rest_as_stuff(tmp_path: Path) -> None:
    mask = np.zeros((5, 8), np.uint8, order="F")
    mask[1:3, 1:4] = 1
    rle = mask_util.encode(mask)
    annotations = [
        {"id": 1, "image_id": 3, "category_id": 4, "segmentation": [[0, 0, 2, 0, 2, 5, 0, 5]]},
        {"id": 2, "image_id": 3, "category_id": 2}
        | {"segmentation": {"size": [5, 8], "counts": rle["counts"].decode()}},
    ]
    content = {
        "images": [{"id": 3, "file_name": "a.jpg", "width": 8, "height": 5}],
        "annotations": annotations,
        "categories": [{"id": 2, "name": "two"}, {"id": 4, "name": "four"}],
    }
    (tmp_path / "in.json").write_text(json.dumps(content))
    for _ in range(2):  # the second time it replaces the first
        panoptic_from_instances(
            tmp_path / "in.json", tmp_path / "out", background="page", progress=False
        )
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["categories"][-1] == {"id": 5, "name": "page", "isthing": 0}
    (annotation,) = result["annotations"]
    ids = read_panoptic_png(tmp_path / "out" / "a.png")
    assert ids[1].tolist() == [1, 2, 2, 2, 3, 3, 3, 3]
    assert [s["category_id"] for s in annotation["segments_info"]] == [4, 2, 5]
    assert [s["area"] for s in annotation["segments_info"]] == [8, 6, 26]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.json", "out", "out.json"]


def test_images_of_one_name_keep_apart(tmp_path: Path) -> None:
    names = ["a/1.jpg", "b/1.jpg", "b/1.png", "c.jpg"]
    size = {"width": 8, "height": 5}
    polygon = [[0, 0, 2, 0, 2, 5, 0, 5]]
    content = {
        "images": [{"id": i, "file_name": name, **size} for i, name in enumerate(names)],
        "annotations": [
            {"id": i + 1, "image_id": i, "category_id": 1, "segmentation": polygon}
            for i in range(4)
        ],
        "categories": [{"id": 1, "name": "one"}],
    }
    (tmp_path / "in.json").write_text(json.dumps(content))
    arguments = {"background": "page", "progress": False}
    panoptic_from_instances(tmp_path / "in.json", tmp_path / "out", **arguments)
    expected = ["a/1.png", "b/1.jpg.png", "b/1.png.png", "c.png"]
    assert (
        sorted(
            p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*.png")
        )
        == expected
    )
    listed = json.loads((tmp_path / "out.json").read_text())["annotations"]
    assert [a["file_name"] for a in listed] == expected
    content["annotations"][1]["segmentation"] = [[0, 0, 1e9, 0, 2, 5]]
    (tmp_path / "in.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"annotation 2 of b/1\.jpg has no sound segmentation"):
        panoptic_from_instances(tmp_path / "in.json", tmp_path / "out", **arguments)
