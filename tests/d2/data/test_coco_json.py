"""What is computed, repaired, left out and refused of a COCO json; nothing is rasterised before it is sound."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image

from comer_d2.d2.data import coco_json
from comer_d2.d2.data.coco_json import CocoFile, read_coco
from comer_d2.d2.data.segmentation_geometry import decode_counts, rle_problem
from tests.d2.runs import LIMIT

WIDTH, HEIGHT = 40, 30


def content(**changes: Any) -> dict[str, Any]:
    """One image with one square."""
    annotation = {
        "id": 1,
        "image_id": 7,
        "category_id": 5,
        "bbox": [2, 3, 10, 8],
        "area": 80,
        "iscrowd": 0,
        "segmentation": [[2, 3, 12, 3, 12, 11, 2, 11]],
    }
    return {
        "info": {},
        "images": [{"id": 7, "file_name": "a.png", "width": WIDTH, "height": HEIGHT}],
        "annotations": [{**annotation, **changes}],
        "categories": [{"id": 5, "name": "screw"}],
    }


def read(folder: Path, data: dict[str, Any], **options: Any) -> CocoFile:
    if not (folder / "a.png").exists():
        Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save(folder / "a.png")
    (folder / "data.json").write_text(json.dumps(data))
    return read_coco(folder / "data.json", folder, **{"need_masks": True, **options})


def problem(folder: Path, data: dict[str, Any], **options: Any) -> str:
    found = read(folder, data, **options)
    assert found.findings
    return "\n".join(found.findings.lines())


def test_a_complete_file_is_used_as_it_is(tmp_path: Path) -> None:
    found = read(tmp_path, content())
    assert not found.findings and not found.notes and not found.changed


@pytest.mark.parametrize("name", ["", "  "])
def test_a_category_without_a_name(tmp_path: Path, name: str) -> None:
    data = content()
    data["categories"][0]["name"] = name
    assert f"categories without a name: id 5: {name!r}" in problem(tmp_path, data).replace(
        "\n", " "
    )


def test_what_is_missing_is_computed(tmp_path: Path) -> None:
    data = content(area=None, iscrowd=None, id=None)
    data["images"][0].update(width=0, height=None)
    found = read(tmp_path, data)
    assert not found.findings and found.changed
    (annotation,) = found.content["annotations"]
    assert (annotation["area"], annotation["iscrowd"], annotation["id"]) == (80, 0, 1)
    image = found.content["images"][0]
    assert (image["width"], image["height"]) == (WIDTH, HEIGHT)
    assert [note.partition(":")[0] for note in found.notes] == [
        "1 images without width and height",
        "1 annotations without iscrowd",
        "1 annotations without area",
        "annotation ids are missing, below 1 or no numbers",
    ]


@pytest.mark.parametrize("ids", [[0, 1], ["a", "b"], [None, 4]])
def test_ids_are_renumbered_and_messages_name_those_of_the_file(tmp_path: Path, ids: list) -> None:
    data = content()
    data["annotations"] = [{**data["annotations"][0], "id": i} for i in ids]
    assert [a["id"] for a in read(tmp_path, data).content["annotations"]] == [1, 2]
    data["annotations"][1]["bbox"] = [0, 0, 0, 0]
    assert f"annotation {ids[1]}: [0, 0, 0, 0]" in problem(tmp_path, data)


@pytest.mark.parametrize("name", ["images\\a.png", "images/a.png", ".\\a.png"])
def test_names_are_mended_where_the_file_is_there_then(tmp_path: Path, name: str) -> None:
    data = content()
    data["images"][0]["file_name"] = name
    found = read(tmp_path, data)
    assert not found.findings and found.changed and "file names" in found.notes[0]
    assert (tmp_path / found.content["images"][0]["file_name"]).is_file()
    data["images"][0]["file_name"] = name.replace("a.png", "b.png")
    assert "b.png: there is no such file" in problem(tmp_path, data)


def test_old_pycocotools_gets_its_info(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = content()
    del data["info"]
    assert not read(tmp_path, data).changed
    monkeypatch.setattr(coco_json, "_pycocotools", lambda: (2, 0, 10))
    found = read(tmp_path, data)
    assert found.changed and found.content["info"] == {}


def test_repair_clips_and_drops_what_it_counts(tmp_path: Path) -> None:
    data = content()
    boxes = [[2, 3, 10, 8], [31, -0.5, 10.5, 9], [5, 5, 0, 4], [39.5, 0, 2, 5]]
    data["annotations"] = [
        {
            **data["annotations"][0],
            "id": i,
            "bbox": [x, y, w, h],
            "segmentation": [[x, y, x + w, y, x + w, y + h]],
        }
        for i, (x, y, w, h) in enumerate(boxes, 1)
    ]
    two = [[1, 1, 2, 2], [2, 3, 12, 3, 12, 11]]
    data["annotations"] += [
        {**data["annotations"][0], "id": i, "bbox": [2, 3, 10, i], "segmentation": polygons}
        for i, polygons in ((5, two), (6, two[:1]))
    ]
    found = read(tmp_path, data, repair=True)
    assert not found.findings and found.changed
    kept = {a["id"]: a for a in found.content["annotations"]}
    assert kept.keys() == {1, 2, 4, 5}
    assert kept[1]["bbox"] == [2, 3, 10, 8]
    assert kept[2]["bbox"] == [31, 0, 9, 8.5]
    assert kept[4]["bbox"] == [39.5, 0, 0.5, 5]
    assert kept[5]["segmentation"] == two[1:]
    assert found.notes == [
        "1 boxes of zero size dropped: annotation 3: [5, 5, 0, 4]",
        "2 boxes clipped to their image: annotation 2: [31, -0.5, 10.5, 9], annotation 4: [39.5, 0, 2, 5]",
        "2 annotations with polygons of less than three points: dropped: annotation 5, annotation 6",
    ]
    asked = problem(tmp_path, data)
    assert asked.count("dataset.repair=True") == 3


def test_wrong_sizes_are_told_from_wrong_boxes(tmp_path: Path) -> None:
    data = content(bbox=[50, 40, 20, 15], segmentation=[[50, 40, 70, 40, 70, 55]])
    data["images"][0].update(width=80, height=60)
    found = read(tmp_path, data)
    (line,) = found.findings.lines()
    assert "another size than the json says" in line and "a.png: 40 x 30, json: 80 x 60" in line


@pytest.mark.parametrize(
    ("segmentation", "what"),
    [
        ([[2, 3, float("nan"), 3, 12, 11]], "coordinate that is no finite number"),
        ([[2, 3, 1e9, 3, 12, 11]], "further outside their image"),
        ([[2, 3, 12, -31, 12, 11]], "further outside their image"),
        ([2, 3, 12, 3, 12, 11], "neither a list of polygons"),
        ([[2, 3, 12, 3, 12, 11, 5]], "neither a list of polygons"),
        ([[[2, 3], [12, 3], [12, 11]]], "neither a list of polygons"),
        ("2 3 12", "neither a list of polygons"),
        ([[2, 3, 12, 3]], "polygons of less than three points"),
        ({"size": [10, 10], "counts": [100]}, "RLEs of another size"),
        ({"size": [WIDTH, HEIGHT], "counts": [1200]}, "RLEs of another size"),
        ({"size": [HEIGHT, WIDTH], "counts": [1201]}, "counts do not fill"),
        ({"size": [HEIGHT, WIDTH], "counts": [1300, -100]}, "counts do not fill"),
        # Of 64 bits their sum is 1200 again, and of 32 bits each is up to 2**31 pixels.
        (
            {
                "size": [HEIGHT, WIDTH],
                "counts": [2**62 + 2**31, 2**62 - 2**31, 2.0**62, 2.0**62, 1200],
            },
            "counts do not fill",
        ),
        ({"size": [HEIGHT, WIDTH], "counts": "oooooooooooooooo"}, "counts do not fill"),
        ({"size": [HEIGHT, WIDTH], "counts": "é"}, "counts do not fill"),
        ({"counts": [1200]}, "neither a list of polygons"),
    ],
)
def test_shapes_that_must_not_be_rasterised(tmp_path: Path, segmentation: Any, what: str) -> None:
    assert what in problem(tmp_path, content(segmentation=segmentation))


def test_hostile_shapes_take_no_memory(tmp_path: Path) -> None:
    """In a process that may have 1 GB more: a NaN or 1e9 in a polygon took 22."""
    code = f"""
import resource
from tests.d2.data.test_coco_json import *
pages = int(Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 2**30
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for value in (float("nan"), 1e9, float("inf")):
    polygon = [2, 3, value, 3, 12, 11]
    problem(Path({str(tmp_path)!r}), content(segmentation=[polygon], area=None))
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr


def test_objects_beyond_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = content()
    data["annotations"] = [{**data["annotations"][0], "id": i} for i in range(1, 30)]
    monkeypatch.setattr(coco_json, "MAX_OBJECTS", 28)
    assert "a.png: 29" in problem(tmp_path, data)
    monkeypatch.setattr(coco_json, "MAX_OBJECTS", 29)
    monkeypatch.setattr(coco_json, "MAX_MASK_BYTES", 29 * WIDTH * HEIGHT - 1)
    assert "a.png: 29 masks" in problem(tmp_path, data)
    assert not read(tmp_path, data, need_masks=False).findings


def test_many_crowds_are_said(tmp_path: Path) -> None:
    data = content(iscrowd=1)
    assert "every annotation is a crowd" in problem(tmp_path, data)
    data["annotations"].append({**data["annotations"][0], "id": 2, "iscrowd": 0})
    assert "of 2 annotations are crowds" in read(tmp_path, data).notes[0]


def test_bad_images_are_left_out_up_to_a_limit(tmp_path: Path) -> None:
    data = content()
    (tmp_path / "b.png").write_bytes(b"no image")
    data["images"].append({"id": 8, "file_name": "b.png", "width": 9, "height": 9})
    data["annotations"].append({**data["annotations"][0], "id": 2, "image_id": 8})
    assert "b.png: the image cannot be read" in problem(tmp_path, data, max_bad_images=0.4)
    found = read(tmp_path, data, max_bad_images=0.5)
    assert not found.findings and found.changed and "b.png" in found.notes[0]
    assert [i["id"] for i in found.content["images"]] == [7]
    assert [a["image_id"] for a in found.content["annotations"]] == [7]


def test_compressed_counts_are_pycocotools() -> None:
    rng = np.random.default_rng(0)
    for case in range(60):
        height, width = (int(n) for n in rng.integers(1, 200, 2))
        mask = (rng.random((height, width)) < rng.random() ** 3).astype(np.uint8)
        if case % 3 == 0:
            mask[:] = 0
            mask[: height // 2, width // 3 :] = 1
        rle = mask_util.encode(np.asfortranarray(mask))
        counts = rle["counts"].decode()
        flat = mask.flatten(order="F")
        edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
        assert (decode_counts(counts) == np.diff(np.concatenate([[0], edges]))).all()
        sound = {"size": [height, width], "counts": counts}
        assert rle_problem(sound, width, height) is None
        assert rle_problem({**sound, "counts": counts[:-1]}, width, height) == "counts"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [10**400, 3, 10, 8]}, "boxes that are not four finite numbers"),
        ({"segmentation": [[10**400, 3, 12, 3, 12, 11]]}, "no finite number"),
        ({"segmentation": [["2", "3", "12", "3", "12", "11"]]}, "neither a list of polygons"),
        ({"segmentation": [[2, "3", 12, 3, 12, 11]]}, "neither a list of polygons"),
        ({"iscrowd": "0"}, "iscrowd is neither 0 nor 1: annotation 1: '0'"),
        ({"iscrowd": 2}, "iscrowd is neither 0 nor 1"),
        ({"iscrowd": []}, "iscrowd is neither 0 nor 1"),
        ({"category_id": 5.0}, "'category_id' is no whole number: number 0: 5.0"),
        ({"image_id": 2**64 + 7}, "'image_id' is no whole number or text"),
    ],
)
def test_values_that_only_look_like_numbers(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    assert message in problem(tmp_path, content(**change))


def test_areas_and_ids_that_none_can_have_are_computed(tmp_path: Path) -> None:
    for area in (-5, 10**400, "80"):
        assert read(tmp_path, content(area=area)).content["annotations"][0]["area"] == 80
    assert read(tmp_path, content(id=2**70)).content["annotations"][0]["id"] == 1
    data = content()
    data["images"][0]["width"] = 10**400
    assert "another size" in problem(tmp_path, data)


def test_a_name_that_no_system_takes_is_that_of_a_missing_file(tmp_path: Path) -> None:
    data = content()
    data["images"][0]["file_name"] = "x" * 5000
    assert "the image cannot be read" in problem(tmp_path, data)


def test_json_nested_without_end_is_no_json(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text("[" * 100_000)
    found = read_coco(tmp_path / "data.json", tmp_path, need_masks=True)
    assert "not valid json" in "\n".join(found.findings.lines())


def several(
    segmentation: Callable[[list[float]], Any], box: Callable[[list[float]], list[float]] = list
) -> dict:
    """Three squares, whose polygons and boxes are changed."""
    data = content()
    data["annotations"] = []
    for number, x in enumerate((2, 9, 22), 1):
        polygon = [x, 4, x + 10, 4, x + 10, 12, x, 12]
        changes = {"id": number, "bbox": box([x, 4, 10, 8]), "segmentation": segmentation(polygon)}
        data["annotations"] += content(**changes)["annotations"]
    return data


def as_runs(polygon: list[float], order: str = "F") -> dict[str, Any]:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[polygon[1] : polygon[5], polygon[0] : polygon[4]] = 1
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.flatten(order=order), [2]])))
    return {"size": [HEIGHT, WIDTH], "counts": np.diff(np.concatenate([[0], edges])).tolist()}


@pytest.mark.parametrize(
    ("segmentation", "box"),
    [
        (lambda p: [[p[i + 1 - 2 * (i % 2)] for i in range(len(p))]], list),  # y, x
        (lambda p: [[p[i] / (WIDTH, HEIGHT)[i % 2] for i in range(len(p))]], list),
        (lambda p: [[n / 4 for n in p]], list),
        (lambda p: as_runs(p, "C"), list),
        (lambda p: [p], lambda b: [b[0] + b[2] / 2, b[1] + b[3] / 2, *b[2:]]),  # of the center
        (lambda p: [p], lambda b: [n / 2 for n in b]),
    ],
)
def test_masks_that_lie_elsewhere_than_their_boxes(
    tmp_path: Path, segmentation: Callable, box: Callable
) -> None:
    """All of them are inside the image, and train."""
    data = several(segmentation, box)
    assert "annotations whose segmentation lies elsewhere than their box" in problem(tmp_path, data)
    found = read(tmp_path, data, need_masks=False)
    assert not found.findings and "segmentation lies elsewhere" in found.notes[0]


@pytest.mark.parametrize("segmentation", [lambda p: [p], as_runs])
def test_one_mask_elsewhere_is_said(tmp_path: Path, segmentation: Callable) -> None:
    data = several(segmentation)
    assert not read(tmp_path, data).notes
    data["annotations"][2]["segmentation"] = data["annotations"][0]["segmentation"]
    found = read(tmp_path, data)
    assert not found.findings
    assert found.notes == [
        "1 annotations whose segmentation lies elsewhere than their box: annotation 3: [22, 4, 10, 8]"
    ]


def test_shares_of_an_image_are_no_pixels(tmp_path: Path) -> None:
    box = [0.1, 0.2, 0.4, 0.3]
    data = several(lambda p: [p], lambda b: box)
    assert "all boxes lie between 0 and 1" in problem(tmp_path, data)
    data["annotations"][0]["bbox"] = [0, 0.0, 1.0000001, 1]  # rounded by a converter
    assert "all boxes lie between 0 and 1" in problem(tmp_path, data)
    data["annotations"][0]["bbox"] = [2, 4, 10, 8]  # two files of which one is in pixels
    assert "2 boxes that lie between 0 and 1" in problem(tmp_path, data)
    pixel = several(lambda p: [[0, 0, 1, 0, 1, 1, 0, 1]], lambda b: [0, 0, 1, 1])
    assert not read(tmp_path, pixel).findings


def test_objects_that_come_twice_are_said(tmp_path: Path) -> None:
    data = several(lambda p: [p])
    data["annotations"].append({**data["annotations"][1], "id": 9})
    assert read(tmp_path, data).notes == [
        "1 annotations that repeat another one's image, category and box: annotation 9: [9, 4, 10, 8]"
    ]


def test_a_class_of_crowds_alone_is_said(tmp_path: Path) -> None:
    data = several(lambda p: [p])
    data["categories"].append({"id": 6, "name": "nut"})
    data["annotations"][0].update(category_id=6, iscrowd=1)
    assert "categories without an object" in read(tmp_path, data).notes[0]


def test_one_image_under_two_spellings(tmp_path: Path) -> None:
    data = content()
    data["images"].append({**data["images"][0], "id": 8, "file_name": "./a.png"})
    assert "listed more than once, under different ids: a.png" in problem(tmp_path, data)
