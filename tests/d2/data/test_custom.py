"""The user's own COCO-format data: every problem is one clear error, classes flow into the model."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.config import LazyConfig
from detectron2.data import DatasetCatalog, MetadataCatalog
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from comer_d2.d2.data.coco_json import read_coco
from comer_d2.d2.data.custom import resolve_dataset
from comer_d2.d2.data.kind import DatasetError


def _coco(**changes: Any) -> dict[str, Any]:
    content = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 9, "file_name": "sub/b.png", "width": 40, "height": 30},
        ],
        "annotations": [
            {
                "id": 1,
                "image_id": 7,
                "category_id": 5,
                "bbox": [2, 3, 10, 8],
                "area": 80,
                "iscrowd": 0,
                "segmentation": [[2, 3, 12, 3, 12, 11, 2, 11]],
            },
            {
                "id": 2,
                "image_id": 9,
                "category_id": 2,
                "bbox": [0, 0, 40, 30],
                "area": 1200,
                "iscrowd": 0,
                "segmentation": [[0, 0, 40, 0, 40, 30, 0, 30]],
            },
        ],
        # Neither sorted nor starting at 1.
        "categories": [{"id": 5, "name": "screw"}, {"id": 2, "name": "nut"}],
    }
    return {**content, **changes}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    images = tmp_path / "images"
    (images / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(images / name)
    for split in ("train", "val"):
        (tmp_path / f"{split}.json").write_text(json.dumps(_coco()))
    return tmp_path


def _config(folder: Path, **changes: Any) -> DictConfig:
    return OmegaConf.create(
        {
            "dataset": {
                "name": "test_custom",
                "train_json": str(folder / "train.json"),
                "train_images": str(folder / "images"),
                "val_json": str(folder / "val.json"),
                "val_images": str(folder / "images"),
                "num_classes": None,
                "class_names": None,
                **changes,
            },
            "dataloader": {"train": {"mapper": {"use_instance_mask": True}}},
            "model": {"roi_heads": {"num_classes": "${dataset.num_classes}"}},
        }
    )


def test_classes_are_read_from_the_json_and_flow_into_the_model(folder: Path) -> None:
    cfg = _config(folder)
    resolve_dataset(cfg)
    assert cfg.model.roi_heads.num_classes == 2
    assert list(cfg.dataset.class_names) == ["nut", "screw"]  # by id, as Detectron2 orders them
    records = DatasetCatalog.get("test_custom_train")
    assert [r["annotations"][0]["category_id"] for r in records] == [1, 0]
    assert MetadataCatalog.get("test_custom_val").json_file == str(folder / "val.json")


def test_config_without_dataset_is_left_alone() -> None:
    cfg = OmegaConf.create({"model": {"a": 1}})
    resolve_dataset(cfg)
    assert cfg == {"model": {"a": 1}}


def test_resolving_again_with_other_paths_registers_those(folder: Path, tmp_path: Path) -> None:
    resolve_dataset(_config(folder))
    three = _coco(categories=[*_coco()["categories"], {"id": 8, "name": "washer"}])
    for split in ("train", "val"):
        (folder / f"{split}3.json").write_text(json.dumps(three))
    cfg = _config(
        folder, train_json=str(folder / "train3.json"), val_json=str(folder / "val3.json")
    )
    resolve_dataset(cfg)
    DatasetCatalog.get("test_custom_train")
    assert MetadataCatalog.get("test_custom_train").thing_classes == ["nut", "screw", "washer"]


def _problem(folder: Path, **changes: Any) -> str:
    (folder / "train.json").write_text(json.dumps(_coco(**changes)))
    with pytest.raises(DatasetError) as error:
        resolve_dataset(_config(folder))
    assert str(folder / "train.json") in str(error.value)
    return str(error.value)


def _annotations(**changes: Any) -> list[dict[str, Any]]:
    first, second = _coco()["annotations"]
    return [first, {**second, **changes}]


def test_good_data_has_no_problems(folder: Path) -> None:
    found = read_coco(folder / "train.json", folder / "images", need_masks=True)
    assert not found.findings and not found.notes and not found.changed
    assert found.categories == {5: "screw", 2: "nut"}


def test_missing_json(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset.val_json=.*nowhere.json: there is no such"):
        resolve_dataset(_config(folder, val_json=str(folder / "nowhere.json")))


def test_paths_that_were_not_given(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset.train_json is not set"):
        resolve_dataset(_config(folder, train_json=""))


def test_hint_follows_a_missing_file(folder: Path) -> None:
    with pytest.raises(DatasetError, match="make it with"):
        resolve_dataset(_config(folder, val_json="no.json", hint="make it with x"))


def test_broken_json(folder: Path) -> None:
    (folder / "val.json").write_text("{")
    with pytest.raises(DatasetError, match=r"val\.json: not valid json"):
        resolve_dataset(_config(folder))


def test_missing_folder_of_images(folder: Path) -> None:
    with pytest.raises(DatasetError, match="folder of images, 'elsewhere', does not exist"):
        resolve_dataset(_config(folder, train_images="elsewhere"))


def test_missing_image_file(folder: Path) -> None:
    (folder / "images" / "sub" / "b.png").unlink()
    message = _problem(folder)
    assert "1 images that are missing or cannot be read" in message
    assert "sub/b.png: there is no such file" in message


def test_unknown_category(folder: Path) -> None:
    message = _problem(folder, annotations=_annotations(category_id=3))
    assert "1 annotations of a category that is not listed" in message
    assert "annotation 2: 3" in message


def test_unknown_image(folder: Path) -> None:
    assert "annotation 2: 8" in _problem(folder, annotations=_annotations(image_id=8))


@pytest.mark.parametrize(
    ("box", "what"),
    [
        ([3, 3, 0, 5], "boxes of zero size; dataset.repair=True drops them"),
        ([3, 3, 5, -1], "boxes that are not four finite numbers"),
        ([1, 2, 3], "boxes that are not four finite numbers"),
        ([1, float("nan"), 3, 4], "boxes that are not four finite numbers"),
        ([1, None, 3, 4], "boxes that are not four finite numbers"),
        ([-5, 0, 9, 9], "boxes outside their image"),
        ([35, 0, 9, 9], "boxes outside their image"),
        ([0, 0, 9, 35], "boxes outside their image"),
        ([30, 20, 35, 25], "they would fit as [x0, y0, x1, y1]"),
        ([31, 0, 10.5, 9], "at most 5% of its side; dataset.repair=True clips them"),
    ],
)
def test_bad_box(folder: Path, box: list[float], what: str) -> None:
    message = _problem(folder, annotations=_annotations(bbox=box))
    assert what in message
    assert f"annotation 2: {box}" in message


def test_many_bad_boxes_are_counted_and_the_first_named(folder: Path) -> None:
    base = _coco()["annotations"][0]
    message = _problem(
        folder, annotations=[{**base, "id": i, "bbox": [0, 0, 0, 0]} for i in range(1, 51)]
    )
    assert "50 boxes" in message and "annotation 3" in message and "annotation 4" not in message


@pytest.mark.parametrize("part", ["images", "annotations", "categories"])
def test_empty_parts(folder: Path, part: str) -> None:
    assert f"{part} missing or empty" in _problem(folder, **{part: []})


@pytest.mark.parametrize("key", ["image_id", "category_id", "bbox"])
def test_missing_field(folder: Path, key: str) -> None:
    without = [{k: v for k, v in a.items() if k != key} for a in _coco()["annotations"]]
    assert f"2 annotations without '{key}'" in _problem(folder, annotations=without)


def test_repeated_ids(folder: Path) -> None:
    message = _problem(folder, annotations=_annotations(id=1))
    assert "1 annotations whose id another one has: 1" in message


def test_boxes_without_masks(folder: Path) -> None:
    annotations = _annotations(segmentation=[])
    message = _problem(folder, annotations=annotations)
    assert "1 annotations without a segmentation" in message
    (config,) = re.findall(r"configs/custom/\w+\.py", message)  # the one to use takes them
    cfg = LazyConfig.load(str(Path(__file__).parents[3] / config))
    cfg.dataset.update(_config(folder).dataset)
    resolve_dataset(cfg)
    assert cfg.model.roi_heads.num_classes == cfg.dataset.num_classes == 2


def test_all_problems_are_told_at_once(folder: Path) -> None:
    (folder / "val.json").unlink()
    message = _problem(folder, annotations=_annotations(category_id=3, bbox=[0, 0, 0, 0]))
    assert "category that is not listed" in message
    assert "zero size" in message
    assert "val.json: there is no such file" in message


def test_train_and_val_categories_have_to_agree(folder: Path) -> None:
    changed = _coco(categories=[{"id": 5, "name": "screw"}, {"id": 2, "name": "bolt"}])
    (folder / "val.json").write_text(json.dumps(changed))
    with pytest.raises(DatasetError, match="differ") as error:
        resolve_dataset(_config(folder))
    assert "(2, 'nut')" in str(error.value) and "(2, 'bolt')" in str(error.value)


def test_number_of_classes_given_by_hand_has_to_agree(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"num_classes is 80, but .*train.json has 2"):
        resolve_dataset(_config(folder, num_classes=80))
    cfg = _config(folder)
    cfg.model.roi_heads.num_classes = 80
    with pytest.raises(DatasetError, match=r"model.roi_heads.num_classes is 80"):
        resolve_dataset(cfg)


def test_name_of_a_known_dataset_is_refused(folder: Path) -> None:
    with pytest.raises(DatasetError, match="already has a dataset 'coco_2017_train'"):
        resolve_dataset(_config(folder, name="coco_2017"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_images": 5}, "dataset.train_images=5: give text"),
        ({"val_json": ["a", "b"]}, r"dataset.val_json=\['a', 'b'\]: give text"),
        ({"name": 7}, "dataset.name=7: give text"),
        ({"name": ""}, "dataset.name is empty"),
        ({"repair": "no"}, "dataset.repair='no': use True or False"),
        ({"class_names": 5}, "dataset.class_names=5: give a list"),
        ({"class_names": {"a": 1}}, "dataset.class_names={'a': 1}: give a list"),
        ({"class_names": [0, 1]}, "class_names holds 0, which is no name"),
        ({"class_names": ["nut", None]}, "class_names holds None, which is no name"),
        ({"class_names": ["nut", " "]}, "class_names holds ' ', which is no name"),
        ({"on_bad_image": True}, "dataset.on_bad_image=True: use error or skip"),
        ({"max_bad_images": float("nan")}, "dataset.max_bad_images=nan: a share"),
        ({"format": "semantic", "class_names": ["a"], "ignore_label": True}, "ignore_label=True"),
    ],
)
def test_settings_of_another_kind(folder: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        resolve_dataset(_config(folder, **change))


def test_class_names_that_configs_would_resolve(folder: Path) -> None:
    content = _coco()
    content["categories"][0]["name"] = "${train.output_dir}"
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(content))
    with pytest.raises(
        DatasetError, match=r"class name '\$\{train.output_dir\}': .*rename the class"
    ):
        resolve_dataset(_config(folder))
