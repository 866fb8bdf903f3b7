"""Real photos with one oddity each, as tools export them: each trains, or ends before with a message that says why.

The tools that write them, odd_coco.py and odd_label_maps.py, are in the folder that COMER_D2_SHARED names.
"""

import importlib.util
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from comer_d2.d2.cli import main
from tests.d2.runs import ROOT, read_metrics

SHARED = os.environ.get("COMER_D2_SHARED", "")
pytestmark = pytest.mark.skipif(not SHARED, reason="COMER_D2_SHARED is not set")

TRAINS = None
# Case -> what the error says (a regular expression), or TRAINS.
COCO: dict[str, str | None] = {
    "ok": TRAINS,
    "ids_from_0": TRAINS,
    "ids_gaps": TRAINS,
    "roboflow": TRAINS,
    "supercat_no_instances": TRAINS,
    "empty_images": TRAINS,
    "crowd_rle": TRAINS,
    "seg_empty_list": r"train\.json: 2 annotations without a segmentation .*: annotation \d+, ",
    "seg_missing": r"\d+ annotations without a segmentation \(to train on boxes alone, use configs",
    "seg_short_polygon": r"1 annotations with polygons of less than three points; dataset\.repair",
    "rle_wrong_size": r"1 RLEs of another size than their image .*: annotation \d+ of 0\d+\.jpg",
    "zero_area": r"1 boxes of zero size; dataset\.repair=True drops them: annotation \d+: \[",
    "bbox_xyxy": r"boxes outside their image .*they would fit as \[x0, y0, x1, y1\]",
    "bbox_normalised": r"train\.json: all boxes lie between 0 and 1: they are shares of the image",
    "bbox_nan": r"1 boxes that are not four finite numbers .*: annotation \d+: .*nan",
    "bbox_missing": r"1 annotations without 'bbox': number 3",
    "no_area_no_iscrowd": TRAINS,
    "no_ann_id": TRAINS,
    "subfolders_spaces": TRAINS,
    "label_studio_names": TRAINS,
    "nonascii_categories": TRAINS,
    "dup_category_names": r"1 category names that come twice .*: 'balloon'",
    "exif_rotated": TRAINS,
    "exif_rotated_raw_size": r"images whose width and height are those before the turn that EXIF",
    "gray": TRAINS,
    "rgba": TRAINS,
    "palette": TRAINS,
    "gray16": r"\.png: the image has more than 8 bits a channel .*convert it to 8 bits",
    "cmyk": TRAINS,
    "webp": TRAINS,
    "tif": TRAINS,
    "corrupt_image": r"train\.json: 1 images that are missing or cannot be read .*train/0\d+\.jpg: ",
    "corrupt_image_val": r"val\.json: 1 images that are missing or cannot be read .*val/0\d+\.jpg: ",
    "not_an_image": r"1 images that are missing or cannot be read .*jpg: the image cannot be read",
    "dup_image_ids": r"1 images whose id another one has: \d+",
    "dup_file_names": r"1 images that are listed more than once, under different ids: 0\d+\.jpg",
    "wh_wrong": r"images of another size than the json says .*0\d+\.jpg: \d+ x \d+, json: \d+ x \d+",
    "wh_missing": TRAINS,
    "wh_zero": TRAINS,
    "cats_in_other_order": TRAINS,
    "cats_differ": r"the categories of .* differ; .*'ballon rouge'.*'red balloon'",
    "missing_image": r"1 images that are missing .*jpg: there is no such file",
    "unknown_category": r"1 annotations of a category that is not listed .*annotation \d+: 3",
    "unknown_image": r"1 annotations of an image that is not listed .*annotation \d+: 12345",
    "string_ids": TRAINS,
    "list_json": r"train\.json: not in COCO format: the top level has to be an object",
    "utf8_bom": TRAINS,
    "train_is_val": TRAINS,
    "empty_val": r"val\.json: annotations missing or empty",
    "image_in_both": TRAINS,
    "bbox_far_outside": r"1 boxes outside their image .*: annotation \d+: \[100\.0, 100\.0, 5000",
    "bbox_little_outside": r"1 boxes that reach more than 1 pixel .*dataset\.repair=True clips them",
    "label_studio": TRAINS,
    "all_crowd": r"train\.json: every annotation is a crowd \(iscrowd=1\)",
    "iscrowd_missing": TRAINS,
    "many_problems": r"(?s)annotation \d+: 8\n.*zero size.*0001\.jpg: there is no such file\n.*: 99\n",
    "area_null": TRAINS,
    "bbox_null": r"1 annotations without 'bbox': number 2",
    "bbox_three": r"1 boxes that are not four finite numbers .*: \[1, 2, 3\]",
    "cat_name_missing": r"1 categories without 'name': number 0",
    "keypoints_only": r"\d+ annotations without a segmentation",
}
LABEL_MAPS: dict[str, str | None] = {
    "ok": TRAINS,
    "palette": TRAINS,
    "rgb_colours": r"train/masks/.*\.png: label maps are images of one channel .*has mode RGB",
    "rgba": r"\.png: label maps are images of one channel .*has mode RGBA",
    "wrong_value": r"train: 1 masks with labels that are no class .*\.png: label 77 is no class",
    "wrong_value_val": r"val: 1 masks with labels that are no class .*\.png: label 77 is no class",
    "ignore_255": TRAINS,
    "all_ignored": TRAINS,
    "binary_0_255": r"train: nothing to learn: .*masks of 0 and 255 have to become 0 and 1",
    "mask_16bit": r"label maps are images of one channel of 8 bits",
    "mask_jpg": r"images without a mask <name>\.png in .*there are JPEGs, which change labels",
    "mask_jpg_named_png": r"\.png: a JPEG changes labels along every edge: write label maps as PNG",
    "missing_mask": r"train: 1 images without a mask <name>\.png",
    "extra_mask": r"train: 1 masks without an image in .*: zz_extra",
    "mask_suffix": r"8 images without a mask <name>\.png",
    "size_differs": r"1 masks of another size than their image: .*\.png is 80 x 60, its image 160 x",
    "corrupt_mask": r"train: 1 files that cannot be read .*masks/.*\.png: the label map cannot be read",
    "corrupt_photo": r"train: 1 files that cannot be read .*images/.*\.jpg: the image cannot be read",
    "subfolders": TRAINS,
    "stray_files": TRAINS,
    "classes_blank_lines": TRAINS,
    "classes_crlf": TRAINS,
    "classes_too_few": r"masks with labels that are no class .*the classes' labels are 0-1",
    "classes_missing_file": r"dataset\.class_names=.*classes\.txt: no such file",
    "labels_from_1": r"masks with labels that are no class .*set dataset\.ignore_label=0",
    "exif": TRAINS,
}


def tool(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(SHARED, "tools", f"{name}.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module", autouse=True)
def _tiny_coco(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The detector's config registers a dataset that is not used here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINY_COCO", str(tmp_path_factory.mktemp("none")))
        yield


def run(config: str, folder: Path, overrides: dict[str, Any], capfd: pytest.CaptureFixture) -> str:
    """Train for two iterations and evaluate; returns what was printed as an error."""
    output = folder / "output"
    arguments = [f"{key}={value}" for key, value in overrides.items()]
    code = main(["--config-file", config, f"train.output_dir={output}", *arguments])
    printed = capfd.readouterr().err
    assert "Traceback" not in printed
    if code == 0:
        assert read_metrics(output)[-1]["total_loss"] > 0
        assert json.loads((output / "evaluation.json").read_text())["results"]
        return ""
    assert code == 2 and not (output / "metrics.json").exists()
    return printed


def run_coco(folder: Path, capfd: pytest.CaptureFixture, **overrides: Any) -> str:
    paths = {
        f"dataset.{split}_{part}": folder / f"{split}{ending}"
        for split in ("train", "val")
        for part, ending in (("json", ".json"), ("images", ""))
    }
    return run(str(ROOT / "tests/d2/tiny_custom.py"), folder, {**paths, **overrides}, capfd)


def write_coco(name: str, folder: Path) -> None:
    module = tool("odd_coco")
    module.ROOT = folder
    module.main([name])


def write_label_maps(name: str, folder: Path) -> None:
    module = tool("odd_label_maps")
    module.ROOT = folder
    module.main([name])


def check(message: str, expected: str | None) -> None:
    if expected is TRAINS:
        assert message == ""
    else:
        assert re.search(expected, message), message


def test_every_case_is_here() -> None:
    assert set(tool("odd_coco").CASES) == set(COCO)
    assert set(tool("odd_label_maps").CASES) == set(LABEL_MAPS)


@pytest.mark.parametrize("name", COCO)
def test_coco(name: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    write_coco(name, tmp_path)
    check(run_coco(tmp_path / name, capfd), COCO[name])


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("seg_short_polygon", {"dataset.repair": True}),
        ("zero_area", {"dataset.repair": True}),
        ("bbox_little_outside", {"dataset.repair": True}),
        ("corrupt_image", {"dataset.on_bad_image": "skip", "dataset.max_bad_images": 0.2}),
        ("corrupt_image_val", {"dataset.on_bad_image": "skip", "dataset.max_bad_images": 0.3}),
        ("missing_image", {"dataset.on_bad_image": "skip", "dataset.max_bad_images": 0.2}),
    ],
)
def test_coco_with_what_the_message_advises(
    name: str, overrides: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    write_coco(name, tmp_path)
    check(run_coco(tmp_path / name, capfd, **overrides), TRAINS)


@pytest.mark.parametrize("name", LABEL_MAPS)
def test_label_maps(name: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    write_label_maps(name, tmp_path)
    check(run_label_maps(tmp_path / name, capfd), LABEL_MAPS[name])


def test_labels_from_1_with_what_the_message_advises(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    write_label_maps("labels_from_1", tmp_path)
    folder = tmp_path / "labels_from_1"
    check(run_label_maps(folder, capfd, **{"dataset.ignore_label": 0}), TRAINS)


def run_label_maps(folder: Path, capfd: pytest.CaptureFixture, **overrides: Any) -> str:
    paths = {
        f"dataset.{split}_{part}": folder / split / part
        for split in ("train", "val")
        for part in ("images", "masks")
    }
    given = {**paths, "dataset.class_names": folder / "classes.txt", "train.max_iter": 2}
    return run(str(ROOT / "tests/d2/tiny_upernet.py"), folder, {**given, **overrides}, capfd)
