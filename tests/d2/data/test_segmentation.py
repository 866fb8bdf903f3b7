"""Label maps and segments: what mappers give, and that what is wrong names its file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from comer_d2.d2.data import builtin
from comer_d2.d2.data.color import ColorTransform, RandomColor
from comer_d2.d2.data.custom import check_dataset, resolve_dataset
from comer_d2.d2.data.mappers import PanopticMapper, SemanticMapper
from comer_d2.d2.data.panoptic_png import read_panoptic_png, write_panoptic_png
from comer_d2.d2.data.semantic_labels import SemanticLabels
from comer_d2.d2.errors import UserError

CONFIGS = Path(__file__).parents[3] / "configs"
HEIGHT, WIDTH = 12, 16
NAMES = ["road", "car", "tree"]


def label_map() -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[2:8, 3:9] = 1
    labels[8:, 10:] = 2
    labels[0, 0] = 255
    return labels


def write_semantic(root: Path, count: int = 2) -> DictConfig:
    """Images and label maps in folders, and the config that names them."""
    for split in ("train", "val"):
        for number in range(count):
            for kind in ("images", "masks"):
                (root / split / kind).mkdir(parents=True, exist_ok=True)
            image = np.random.default_rng(number).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
            Image.fromarray(image).save(root / split / "images" / f"{number}.jpg")
            Image.fromarray(label_map()).save(root / split / "masks" / f"{number}.png")
    folders = {
        f"{split}_{kind}": str(root / split / kind)
        for split in ("train", "val")
        for kind in ("images", "masks")
    }
    dataset = {"format": "semantic", "name": "test_seg_own", "class_names": NAMES, **folders}
    return OmegaConf.create({"dataset": dataset})


def write_panoptic(root: Path) -> DictConfig:
    """The same images, with things and stuff in COCO's panoptic format."""
    cfg = write_semantic(root)
    ids = np.full((HEIGHT, WIDTH), 70_000)
    ids[2:8, 3:6], ids[2:8, 6:9], ids[9:, 10:] = 300, 8, 9
    ids[0, 0] = 0
    info = [
        {"id": 70_000, "category_id": 5},
        {"id": 300, "category_id": 7},
        {"id": 8, "category_id": 7, "iscrowd": 0},
        {"id": 9, "category_id": 7, "iscrowd": 1},
    ]
    categories = [
        {"id": 5, "name": "road", "isthing": 0},
        {"id": 7, "name": "car", "isthing": 1},
    ]
    for split in ("train", "val"):
        (root / split / "panoptic").mkdir()
        images, annotations = [], []
        for number in range(2):
            write_panoptic_png(ids, root / split / "panoptic" / f"{number}.png")
            size = {"width": WIDTH, "height": HEIGHT}
            images.append({"id": f"n{number}", "file_name": f"{number}.jpg", **size})
            annotations.append(
                {"image_id": f"n{number}", "file_name": f"{number}.png", "segments_info": info}
            )
        content = {"images": images, "annotations": annotations, "categories": categories}
        (root / f"{split}.json").write_text(json.dumps(content))
        cfg.dataset[f"{split}_json"] = str(root / f"{split}.json")
        cfg.dataset[f"{split}_masks"] = str(root / split / "panoptic")
    cfg.dataset.format = "panoptic"
    cfg.dataset.class_names = None
    return cfg


def segment(**changes: Any) -> dict[str, Any]:
    return {"id": 8, "category_id": 7, **changes}


def first(name: str) -> dict[str, Any]:
    return DatasetCatalog.get(name)[0]


def error(cfg: DictConfig) -> str:
    with pytest.raises(UserError) as caught:
        resolve_dataset(cfg)
    return str(caught.value)


def test_own_label_maps(tmp_path: Path) -> None:
    cfg = write_semantic(tmp_path)
    resolve_dataset(cfg)
    resolve_dataset(cfg)  # as main process and workers do
    assert cfg.dataset.num_classes == 3
    assert MetadataCatalog.get("test_seg_own_val").stuff_classes == NAMES
    mapper = SemanticMapper(True, dataset_name="test_seg_own_train", augmentations=[])
    output = mapper(first("test_seg_own_train"))
    assert output["image"].shape == (3, HEIGHT, WIDTH)
    assert output["image"].dtype == torch.uint8
    assert (output["sem_seg"].numpy() == label_map()).all()
    assert output["sem_seg"].dtype == torch.int64
    assert (output["height"], output["width"]) == (HEIGHT, WIDTH)
    test = SemanticMapper(False, dataset_name="test_seg_own_val", augmentations=[])
    assert "sem_seg" not in test(first("test_seg_own_val"))


def test_classes_from_a_file(tmp_path: Path) -> None:
    cfg = write_semantic(tmp_path)
    (tmp_path / "classes.txt").write_text("road\ncar\n\ntree\n")
    cfg.dataset.class_names = str(tmp_path / "classes.txt")
    resolve_dataset(cfg)
    assert list(cfg.dataset.class_names) == NAMES


def test_augmentations_move_image_and_labels_together(tmp_path: Path) -> None:
    cfg = write_semantic(tmp_path)
    resolve_dataset(cfg)
    augmentations = [
        T.RandomFlip(prob=1.0, horizontal=True),
        T.RandomCrop_CategoryAreaConstraint("absolute", (8, 64), 0.99, 255),
        RandomColor(),
    ]
    mapper = SemanticMapper(True, dataset_name="test_seg_own_train", augmentations=augmentations)
    output = mapper(first("test_seg_own_train"))
    assert output["image"].shape[1:] == output["sem_seg"].shape == (8, WIDTH)
    mirrored = label_map()[:, ::-1]
    places = [mirrored[y : y + 8] for y in range(HEIGHT - 7)]
    assert any((output["sem_seg"].numpy() == place).all() for place in places)


def test_segments_become_instances(tmp_path: Path) -> None:
    cfg = write_panoptic(tmp_path)
    resolve_dataset(cfg)
    assert list(cfg.dataset.class_names) == ["car", "road"]  # things first
    assert list(cfg.dataset.stuff_classes) == [1]
    record = first("test_seg_own_train")
    assert record["image_id"] == "n0"
    instances = PanopticMapper(True, augmentations=[])(record)["instances"]
    assert instances.gt_classes.tolist() == [1, 0, 0]  # and no crowd
    masks = instances.gt_masks.tensor
    assert masks.sum((1, 2)).tolist() == [HEIGHT * WIDTH - 1 - 36 - 18, 18, 18]
    assert instances.gt_boxes.tensor[1].tolist() == [3, 2, 6, 8]

    things = PanopticMapper(True, augmentations=[], things_only=True)(record)["instances"]
    assert things.gt_classes.tolist() == [0, 0]
    doubled = PanopticMapper(True, augmentations=[T.Resize((2 * HEIGHT, 2 * WIDTH))])(record)
    assert (
        doubled["instances"].gt_masks.tensor.sum((1, 2)).tolist()
        == (masks.sum((1, 2)) * 4).tolist()
    )
    corner = PanopticMapper(True, augmentations=[T.CropTransform(0, 0, 5, 4)])(record)["instances"]
    assert corner.gt_classes.tolist() == [1, 0]  # one car is outside


def test_panoptic_data_trains_semantic_segmentation_too(tmp_path: Path) -> None:
    cfg = write_panoptic(tmp_path)
    resolve_dataset(cfg)
    mapper = SemanticMapper(True, dataset_name=["test_seg_own_train"], augmentations=[])
    labels = mapper(first("test_seg_own_train"))["sem_seg"]
    assert labels.unique().tolist() == [0, 1, 255]
    assert (labels == 0).sum() == 18 + 18 + 18  # the crowd is a car as well


@pytest.mark.parametrize("task", ["instance", "panoptic"])
def test_large_scale_jitter_keeps_masks_on_their_pixels(tmp_path: Path, task: str) -> None:
    """The mappers of configs/COCO, on a car drawn in white on a dark road."""
    cfg = write_panoptic(tmp_path)
    resolve_dataset(cfg)
    record = dict(first("test_seg_own_train"), file_name=str(tmp_path / "drawn.png"))
    ids = read_panoptic_png(record["pan_seg_file_name"])
    Image.fromarray(np.repeat((ids == 300)[..., None] * np.uint8(255), 3, -1)).save(
        record["file_name"]
    )
    polygon = [3.0, 2.0, 6.0, 2.0, 6.0, 8.0, 3.0, 8.0]
    car = {"bbox": [3, 2, 6, 8], "bbox_mode": BoxMode.XYXY_ABS, "segmentation": [polygon]}
    record["annotations"] = [{**car, "category_id": 0, "iscrowd": 0}]
    leaf = LazyConfig.load(str(CONFIGS / f"COCO/{task}/mask2former_comer_s.py"))
    mapper = instantiate(leaf.dataloader.train.mapper)
    seed_all_rng(0)
    sizes, seen = set(), 0
    for _ in range(12):
        output = mapper(record)
        instances = output["instances"]
        masks, size = instances.gt_masks.tensor, tuple(output["image"].shape[1:])
        assert masks.shape[1:] == size == instances.image_size
        assert max(size) <= 1024
        sizes.add(size)
        white = output["image"][0] > 127
        if white.sum() > 500:  # smaller ones are all edge, where pixels blend
            seen += 1
            ious = [(mask & white).sum() / (mask | white).sum() for mask in masks]
            assert max(ious) > 0.9
    assert len(sizes) > 4
    assert seen > 4


def test_a_palette_s_numbers_count(tmp_path: Path) -> None:
    cfg = write_semantic(tmp_path)
    resolve_dataset(cfg)
    record = first("test_seg_own_train")
    picture = Image.new("P", (WIDTH, HEIGHT))
    picture.putdata(label_map().flatten().tolist())
    picture.putpalette([200, 10, 10] + list(range(3, 256)) * 3 + [0] * 6)
    picture.save(record["sem_seg_file_name"])
    assert (SemanticLabels("test_seg_own_train")(record) == label_map()).all()


def test_a_wrong_label_names_the_file(tmp_path: Path) -> None:
    cfg = write_semantic(tmp_path)
    resolve_dataset(cfg)
    record = first("test_seg_own_train")
    path = record["sem_seg_file_name"]
    Image.fromarray(label_map() * 3).save(path)
    with pytest.raises(
        UserError, match=r"0\.png: label 3, 6, 253 is no class: .* 0-2 \(255: ignored"
    ):
        SemanticMapper(True, dataset_name="test_seg_own_train", augmentations=[])(record)
    Image.fromarray(np.stack([label_map()] * 3, -1)).save(path)
    with pytest.raises(UserError, match=r"0\.png: label maps are images of one channel"):
        SemanticLabels("test_seg_own_train")(record)
    Path(path).unlink()
    with pytest.raises(UserError, match=r"0\.png: the label map cannot be read"):
        SemanticLabels("test_seg_own_train")(record)


def test_a_wrong_size_names_both_files(tmp_path: Path) -> None:
    cfg = write_panoptic(tmp_path)
    resolve_dataset(cfg)
    record = first("test_seg_own_train")
    ids = read_panoptic_png(record["pan_seg_file_name"])
    write_panoptic_png(ids[:-1], record["pan_seg_file_name"])
    with pytest.raises(
        UserError, match=r"0\.png is 16 x 11 pixels, but its image .*0\.jpg is 16 x 12"
    ):
        PanopticMapper(True, augmentations=[])(record)
    write_panoptic_png(ids + 1, record["pan_seg_file_name"])
    with pytest.raises(UserError, match=r"0\.png: segments \[1, .* are not in its segments_info"):
        PanopticMapper(True, augmentations=[])(record)


def test_folders_that_do_not_fit(tmp_path: Path) -> None:
    cfg = write_semantic(tmp_path, count=3)
    (tmp_path / "train" / "masks" / "1.png").unlink()
    (tmp_path / "train" / "images" / "2.jpg").unlink()
    Image.fromarray(label_map()[1:]).save(tmp_path / "train" / "masks" / "0.png")
    message = error(cfg)
    assert f"1 images without a mask <name>.png in {tmp_path}/train/masks: 1" in message
    assert f"1 masks without an image in {tmp_path}/train/images: 2" in message
    assert "masks/0.png is 16 x 11, its image 16 x 12" in message

    cfg.dataset.train_masks = str(tmp_path / "nowhere")
    assert f"dataset.train_masks={tmp_path}/nowhere: no such folder" in error(cfg)
    cfg.dataset.class_names = None
    assert "give dataset.class_names" in error(cfg)
    cfg.dataset.format = "semantics"
    assert "use one of instances, semantic, panoptic" in error(cfg)


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("categories", {"name": "road"}, "1 category names that come twice"),
        ("categories", {"isthing": None}, "1 categories without 'isthing': number 1"),
        ("images", {"id": "n0"}, "1 images whose id another one has: n0"),
        ("images", {"width": 3}, "1 images of another size than the json says"),
        ("images", {"file_name": "0.jpg"}, "images that are listed more than once"),
        ("images", {"file_name": "9.jpg"}, "9.jpg: there is no such file"),
        ("annotations", {"image_id": "n7"}, "1 annotations of an image that is not listed"),
        ("annotations", {"file_name": "0.png"}, "1 annotations whose file_name another one has"),
        ("annotations", {"segments_info": None}, "1 annotations without 'segments_info'"),
        ("annotations", {"segments_info": []}, "1.png: segments [8, 9, 300, 70000] are not in its"),
        ("annotations", {"segments_info": [{"id": 8}]}, "1 segments that are no object with an id"),
        (
            "annotations",
            {"segments_info": [segment(category_id=[7])]},
            "1 segments that are no obj",
        ),
        (
            "annotations",
            {"segments_info": [segment(id=0)]},
            "an id above 0 (0 stands for no segment)",
        ),
        ("annotations", {"segments_info": [segment(iscrowd=2)]}, "1 segments that are no object"),
        ("annotations", {"segments_info": [segment(), segment()]}, "same PNG has: 1.png: 8"),
        ("categories", {"isthing": 5}, "1 categories whose isthing is neither 0 nor 1: 'car': 5"),
    ],
)
def test_entries_of_a_panoptic_json(
    tmp_path: Path, part: str, change: dict[str, Any], message: str
) -> None:
    cfg = write_panoptic(tmp_path)
    content = json.loads((tmp_path / "val.json").read_text())
    content[part][1].update(change)
    (tmp_path / "val.json").write_text(json.dumps(content))
    assert message in error(cfg)


def test_sizes_of_a_panoptic_json_are_read_from_the_images(tmp_path: Path) -> None:
    cfg = write_panoptic(tmp_path)
    content = json.loads((tmp_path / "train.json").read_text())
    for image in content["images"]:
        del image["width"], image["height"]
    (tmp_path / "train.json").write_text(json.dumps(content), encoding="utf-8-sig")
    resolve_dataset(cfg)
    assert (first("test_seg_own_train")["width"], first("test_seg_own_train")["height"]) == (16, 12)


def test_panoptic_json_that_does_not_fit(tmp_path: Path) -> None:
    cfg = write_panoptic(tmp_path)
    (tmp_path / "val" / "panoptic" / "1.png").unlink()
    assert "1 PNGs that are missing" in error(cfg)
    (tmp_path / "val.json").write_text("[]")
    assert "not in COCO format" in error(cfg)
    cfg.dataset.val_json = ""
    assert "dataset.val_json is not set" in error(cfg)


def test_panoptic_data_of_void_and_crowds(tmp_path: Path) -> None:
    cfg = write_panoptic(tmp_path)
    content = json.loads((tmp_path / "val.json").read_text())
    for annotation in content["annotations"]:
        for part in annotation["segments_info"]:
            part["iscrowd"] = 1
    (tmp_path / "val.json").write_text(json.dumps(content))
    assert "no segment but crowds (iscrowd=1) has a pixel in any PNG" in error(cfg)


def test_listed_segments_without_a_pixel_are_said(tmp_path: Path) -> None:
    cfg = write_panoptic(tmp_path)
    content = json.loads((tmp_path / "val.json").read_text())
    content["annotations"][1]["segments_info"].append(segment(id=99))
    (tmp_path / "val.json").write_text(json.dumps(content))
    (note,) = check_dataset(cfg).notes
    assert "1 segments without a pixel in their PNG, which are not used: 1.png: 99" in note


def write_instances(root: Path) -> dict[str, Any]:
    """Instances of the panoptic validation data, as they should be."""
    content = json.loads((root / "val.json").read_text())
    boxes = [[3, 2, 3, 6], [6, 2, 3, 6]]
    annotations = [
        {"image_id": image["id"], "category_id": 7, "bbox": [x, y, w, h]}
        | {"segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]]}
        for image in content["images"]
        for x, y, w, h in boxes
    ]
    return {**content, "annotations": annotations, "categories": content["categories"][1:]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["categories"][0].update(name="lorry"), "(id, name) that dataset.val_json (things) lacks: (7, 'lorry')"),
        (lambda d: d["images"][0].update(id="n9") or d["annotations"].__delitem__(slice(2)), "images (id, file_name) that dataset.val_json lacks: ('n9', '0.jpg')"),
        (lambda d: d["images"].pop(0) and d["annotations"].__delitem__(slice(2)), "images (id, file_name) of dataset.val_json that are missing: ('n0', '0.jpg')"),
        (lambda d: d.clear(), "images and annotations and categories missing or empty"),
    ],
)  # fmt: skip
def test_instances_of_panoptic_data(tmp_path: Path, change: Callable, message: str) -> None:
    """They are read before training, not at the first evaluation, which would count by wrong ids."""
    cfg = write_panoptic(tmp_path)
    cfg.dataset.val_instances = str(tmp_path / "instances.json")
    assert f"dataset.val_instances={tmp_path}/instances.json: there is no such file" in error(cfg)
    data = write_instances(tmp_path)
    (tmp_path / "instances.json").write_text(json.dumps(data))
    resolve_dataset(cfg)
    completed = json.loads(Path(MetadataCatalog.get("test_seg_own_val").json_file).read_text())
    assert [a["area"] for a in completed["annotations"]] == [18, 18, 18, 18]
    change(data)
    (tmp_path / "instances.json").write_text(json.dumps(data))
    assert message in error(cfg)


def test_public_datasets() -> None:
    coco_stuff = MetadataCatalog.get("coco_2017_train_stuff_164k")
    assert len(coco_stuff.stuff_classes) == len(coco_stuff.label_in_file) == 171
    found = dict(zip(coco_stuff.label_in_file, coco_stuff.stuff_classes, strict=True))
    # By Detectron2's own list of panoptic classes, where the two agree.
    for category in builtin.COCO_CATEGORIES:
        if "-merged" not in category["name"]:
            assert found[category["id"] - 1] == category["name"]
    ade = MetadataCatalog.get("ade20k_panoptic_val")
    assert len(ade.thing_dataset_id_to_contiguous_id) == 100
    assert len(ade.stuff_dataset_id_to_contiguous_id) == 50
    stuff = {ade.stuff_classes[i] for i in ade.stuff_dataset_id_to_contiguous_id}
    assert {"wall", "sky", "floor", "grass", "water"} <= stuff
    assert not {"bed", "person", "car"} & stuff


def test_colour_changes() -> None:
    image = np.random.default_rng(0).integers(0, 256, (5, 6, 3), np.uint8)
    same = {"brightness": 0.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0}

    def changed(**change: float) -> np.ndarray:
        return ColorTransform(**{**same, **change}, contrast_last=False).apply_image(image)

    assert (changed() == image).all()
    assert (changed(brightness=300.0) == 255).all()
    assert (changed(contrast=0.5) == image // 2).all()
    grey = changed(saturation=0.0)
    assert (grey.max(-1) == grey.min(-1)).all()
    red = np.full((1, 1, 3), (200, 0, 0), np.uint8)
    turned = ColorTransform(**{**same, "hue": 120.0}, contrast_last=True).apply_image(red)
    assert turned[0, 0].tolist() == pytest.approx([0, 200, 0], abs=5)
    assert ColorTransform(**same, contrast_last=True).apply_segmentation(image) is image
