"""Annotations of other tools, against supervision's and Detectron2's own readers, and there and back."""

import json
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from detectron2.data.datasets.pascal_voc import load_voc_instances
from omegaconf import OmegaConf
from PIL import Image

from comer_d2.__main__ import main
from comer_d2.d2.data.formats.coco import read_coco_file
from comer_d2.d2.data.formats.split import FormatError, Split
from comer_d2.d2.data.formats.voc import read_voc, write_voc
from comer_d2.d2.data.formats.yolo import read_yolo, write_yolo
from comer_d2.d2.data.panoptic import PanopticData
from comer_d2.d2.data.split_coco import split_coco
from comer_d2.d2.engine.overrides import apply_overrides

SIZES = {"a/one.png": (64, 48), "b/one.jpg": (40, 56), "b/empty.png": (30, 30)}


@pytest.fixture
def coco(tmp_path: Path) -> Split:
    """Three images in two folders; a triangle, a square and a box; two classes."""
    images = tmp_path / "photos"
    content: dict = {
        "images": [],
        "categories": [{"id": 3, "name": "nut"}, {"id": 7, "name": "große Schraube"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 7, "bbox": [4.0, 6.0, 20.0, 30.0], "area": 300.0, "iscrowd": 0, "segmentation": [[4.0, 6.0, 24.0, 6.0, 4.0, 36.0]]},
            {"id": 2, "image_id": 1, "category_id": 3, "bbox": [30.5, 10.25, 20.0, 20.0], "area": 400.0, "iscrowd": 0, "segmentation": [[30.5, 10.25, 50.5, 10.25, 50.5, 30.25, 30.5, 30.25]]},
            {"id": 3, "image_id": 2, "category_id": 7, "bbox": [0.0, 0.0, 40.0, 56.0], "area": 2240.0, "iscrowd": 0, "segmentation": [[0.0, 0.0, 40.0, 0.0, 40.0, 56.0, 0.0, 56.0]]},
        ],
    }  # fmt: skip
    for number, (name, size) in enumerate(SIZES.items(), 1):
        (images / name).parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 255, (*size[::-1], 3), np.uint8)
        Image.fromarray(noise).save(images / name)
        content["images"].append(
            {"id": number, "file_name": name, "width": size[0], "height": size[1]}
        )
    return Split("train", images, content)


def objects_of(split: Split) -> list[tuple]:
    """Everything but the ids."""
    names = {c["id"]: c["name"] for c in split.content["categories"]}
    return sorted(
        (
            Path(image["file_name"]).with_suffix("").as_posix(),
            names[a["category_id"]],
            tuple(np.round(a["bbox"], 6).tolist()),
            tuple(np.round(a.get("segmentation", [[]])[0], 6).tolist()),
        )
        for image, annotations in split.objects()
        for a in annotations
    )


def test_yolo_there_and_back(coco: Split, tmp_path: Path) -> None:
    write_yolo([coco], tmp_path / "yolo", boxes=False)
    (back,) = read_yolo(tmp_path / "yolo")
    assert objects_of(back) == objects_of(coco)
    assert len(back.content["images"]) == 3
    assert back.class_names == coco.class_names


def test_yolo_boxes_as_supervision_reads_them(coco: Split, tmp_path: Path) -> None:
    import supervision

    write_yolo([coco], tmp_path / "yolo", boxes=True)
    (ours,) = read_yolo(tmp_path / "yolo" / "data.yaml")
    theirs = supervision.DetectionDataset.from_yolo(
        str(tmp_path / "yolo/images/train/a"),
        str(tmp_path / "yolo/labels/train/a"),
        str(tmp_path / "yolo/data.yaml"),
    )
    (_, _, detections) = next(iter(theirs))
    found = [a["bbox"] for a in ours.content["annotations"][:2]]
    corners = [[x, y, x + w, y + h] for x, y, w, h in found]
    np.testing.assert_allclose(detections.xyxy, corners, atol=1e-4)
    assert [theirs.classes[i] for i in detections.class_id] == ["große Schraube", "nut"]


def test_voc_as_detectron2_reads_it(coco: Split, tmp_path: Path) -> None:
    for image in coco.content["images"]:  # it wants .jpg alone
        path = coco.images / image["file_name"]
        image["file_name"] = str(Path(image["file_name"]).with_suffix(".jpg"))
        Image.open(path).convert("RGB").save(coco.images / image["file_name"])
    voc = tmp_path / "voc"
    with pytest.raises(FormatError, match="3 objects have masks"):
        write_voc([coco], tmp_path / "no", boxes=False)
    write_voc([coco], voc, boxes=True)
    theirs = load_voc_instances(str(voc), "train", coco.class_names)
    (ours,) = read_voc(voc)
    boxes = [
        [a["bbox"] for a in annotations]
        for _, annotations in ours.objects()
    ]  # fmt: skip
    corners = [[[x, y, x + w, y + h] for x, y, w, h in found] for found in boxes]
    for record, found in zip(theirs, corners, strict=True):
        given = [a["bbox"] for a in record["annotations"]]
        np.testing.assert_allclose(np.reshape(given, (-1, 4)), np.reshape(found, (-1, 4)))
    # Not the polygons, which VOC has not.
    expected = [(*o[:3], ()) for o in objects_of(coco)]
    assert objects_of(ours) == expected


def test_voc_names_with_spaces(coco: Split, tmp_path: Path) -> None:
    image, other, _ = coco.content["images"]
    image["file_name"], other["file_name"] = "a/one more.png", "a/one.jpg"
    for old, new in zip(SIZES, ("a/one more.png", "a/one.jpg")):
        (coco.images / old).rename(coco.images / new)
    write_voc([coco], tmp_path / "voc", boxes=True)
    (back,) = read_voc(tmp_path / "voc")
    assert objects_of(back) == [(*o[:3], ()) for o in objects_of(coco)]
    main_list = tmp_path / "voc" / "ImageSets" / "Main" / "train.txt"
    main_list.write_text("a/one more -1\na/one  1\n")
    (back,) = read_voc(tmp_path / "voc")
    assert [i["file_name"] for i in back.content["images"]] == ["a/one more.png", "a/one.jpg"]


def test_labelme_there_and_back(coco: Split, tmp_path: Path) -> None:
    coco.content["annotations"][0]["segmentation"].append([5.0, 40.0, 9.0, 40.0, 9.0, 44.0])
    (coco.images / "annotations.json").write_text(json.dumps(coco.content), encoding="utf-8")
    run("convert", coco.images / "annotations.json", tmp_path / "labelme", "--from", "coco", "--images", coco.images, "--to", "labelme")  # fmt: skip
    run("convert", tmp_path / "labelme", tmp_path / "back", "--from", "labelme")
    (back,) = read_coco_file(tmp_path / "back" / "all.json", tmp_path / "labelme")
    two = next(a for a in back.content["annotations"] if len(a["segmentation"]) == 2)
    assert two["bbox"] == [4.0, 6.0, 20.0, 38.0]
    assert two["area"] == 300.0 + 8.0
    assert len(back.content["annotations"]) == 3


def test_labelme_s_images_are_where_it_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    for name in ("photos/1.png", "photos/2.png"):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(tmp_path / name)
    shape = {"label": "a", "points": [[1, 1], [9, 1], [9, 9]]}
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels" / "1.json").write_text(json.dumps({"imagePath": "..\\photos\\1.png", "shapes": [shape]}))  # fmt: skip
    run("convert", tmp_path / "labels", tmp_path / "out", "--from", "labelme", "--images", tmp_path / "photos")  # fmt: skip
    content = json.loads((tmp_path / "out" / "all.json").read_text())
    assert [image["file_name"] for image in content["images"]] == ["1.png"]
    assert "1 images without a .json are left out: 2.png" in capsys.readouterr().out


def test_voc_keeps_every_part(coco: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    write_voc([coco], tmp_path, boxes=True)
    sets = tmp_path / "ImageSets" / "Main"
    (sets / "train.txt").unlink()
    (sets / "trainval.txt").write_text("a/one\na/one\n")
    (sets / "test.txt").write_text("b/one\n")
    run("convert", tmp_path, tmp_path / "out", "--from", "voc")
    told = capsys.readouterr().out
    assert "trainval: 1 images, 2 objects" in told
    assert "1 .xml files in no list of ImageSets/Main are left out: b/empty" in told
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["test.json", "trainval.json"]
    assert "dataset.trainval_json" not in told  # no config has it


def test_yolo_s_own_names_and_place(coco: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    (tmp_path / "my screws.json").write_text(json.dumps(coco.content), encoding="utf-8")
    run("convert", tmp_path / "my screws.json", tmp_path / "to yolo", "--from", "coco", "--images", coco.images, "--to", "yolo")  # fmt: skip
    told = capsys.readouterr().out
    assert "my screws is called train in data.yaml" in told
    assert "no val, which YOLO's tools ask for" in told
    described = yaml.safe_load((tmp_path / "to yolo" / "data.yaml").read_text("utf-8"))
    assert described["train"] == "images/train"
    # Relative, it would be looked for in the folder of YOLO's own settings.
    assert "path" not in described
    run("convert", tmp_path / "to yolo", tmp_path / "and back", "--from", "yolo")
    lines = capsys.readouterr().out.splitlines()
    keys = next(shlex.split(line) for line in lines if "dataset.train_json" in line)
    cfg = apply_overrides(
        OmegaConf.create({"dataset": {"train_json": "", "train_images": ""}}), keys
    )
    assert Path(cfg.dataset.train_json) == tmp_path / "and back" / "train.json"
    assert Path(cfg.dataset.train_images) == tmp_path / "to yolo" / "images" / "train"


def test_a_yolo_test_that_was_not_handed_out(coco: Split, tmp_path: Path) -> None:
    write_yolo([coco], tmp_path / "yolo", boxes=False)
    described = yaml.safe_load((tmp_path / "yolo" / "data.yaml").read_text())
    (tmp_path / "yolo" / "data.yaml").write_text(yaml.safe_dump(described | {"test": "../test/images"}))  # fmt: skip
    (again,) = read_yolo(tmp_path / "yolo")
    assert again.notes == [f"test is left out: there is no {tmp_path / 'yolo' / '../test/images'}"]
    (tmp_path / "yolo" / "data.yaml").write_text(yaml.safe_dump(described | {"val": "../val/images"}))  # fmt: skip
    with pytest.raises(FormatError, match=r"not there: .*val/images"):
        read_yolo(tmp_path / "yolo")


def test_a_coco_json_s_name_says_which_part_it_is(coco: Split, tmp_path: Path) -> None:
    for name, part in {"instances_train2017": "train", "my_validation": "val", "latest": "latest"}.items():  # fmt: skip
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(coco.content), encoding="utf-8")
        assert [split.name for split in read_coco_file(path, coco.images)] == [part]


def run(*words: object) -> None:
    assert main(["data", *map(str, words)]) == 0


def fails(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert main(["data", *map(str, words)]) == 2
    return capsys.readouterr().err


def test_panoptic_data_of_objects_and_the_rest(coco: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(coco.content))
    photos = str(coco.images)
    convert = ["data", "convert", str(tmp_path / "train.json"), str(tmp_path / "out"), "--from", "coco", "--images", photos]  # fmt: skip
    assert main([*convert, "--background", "wall"]) == 2
    assert main([*convert, "--to", "panoptic", "--boxes"]) == 2
    assert main([*convert, "--to", "panoptic", "--background", "nut"]) == 2
    assert "'nut' is a class of train already" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*convert, "--to", "panoptic", "--background", "wall"]) == 0
    printed = capsys.readouterr().out.splitlines()[-1]

    keys = OmegaConf.create({"dataset": {"name": "x", "class_names": None, "num_classes": None, "format": "panoptic", "train_json": "", "train_images": "", "train_masks": ""}})  # fmt: skip
    apply_overrides(keys, shlex.split(printed))
    for kind in ("json", "images", "masks"):
        keys.dataset[f"val_{kind}"] = keys.dataset[f"train_{kind}"]
    checked = PanopticData.check(keys, decode=True)
    assert checked.values["class_names"] == ["nut", "große Schraube", "wall"]
    assert checked.values["num_things"] == 2
    written = json.loads((tmp_path / "out" / "train.json").read_text())
    areas = [[s["area"] for s in a["segments_info"]] for a in written["annotations"]]
    assert [len(parts) for parts in areas] == [3, 1, 1]  # one is covered, one photo is empty
    assert [sum(parts) for parts in areas] == [w * h for w, h in SIZES.values()]
    assert json.loads((tmp_path / "out" / "instances_train.json").read_text()) == {"info": {}, **coco.content}  # fmt: skip


def test_via_regions(coco: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def region(shape: dict, **attributes: object) -> dict:
        return {"shape_attributes": shape, "region_attributes": attributes}

    circle = region({"name": "circle", "cx": 20, "cy": 20, "r": 10}, kind="nut")
    rect = region({"name": "rect", "x": 1, "y": 2, "width": 3, "height": 4}, kind={"bolt": True})
    via = tmp_path / "via.json"
    metadata = {"k": {"filename": "a/one.png", "regions": [circle, rect]}}
    via.write_text(json.dumps({"_via_img_metadata": metadata}))
    run("convert", via, tmp_path / "out", "--from", "via", "--images", coco.images)
    content = json.loads((tmp_path / "out" / "all.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["bolt", "nut"]
    np.testing.assert_allclose(content["annotations"][0]["bbox"], [10, 10, 20, 20])
    # Of the circle's area, all but what 64 corners cut off.
    assert content["annotations"][0]["area"] == pytest.approx(np.pi * 100, rel=2e-3)
    assert content["annotations"][1]["bbox"] == [1, 2, 3, 4]

    bare = region({"name": "point", "cx": 1, "cy": 1}), region({"name": "rect"})
    via.write_text(json.dumps({"k": {"filename": "a/one.png", "regions": list(bare)}}))
    error = fails(capsys, "convert", via, tmp_path / "no", "--from", "via", "--images", coco.images)
    assert "2 regions whose class is not known" in error
    assert "--class" in error


def test_instance_masks(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (20, 10)).save(tmp_path / "photos" / "x.jpg")
    values = np.zeros((10, 20), np.uint16)
    values[2:5, 3:9] = 1001
    values[6:8, 10:12] = 2007
    Image.fromarray(values).save(tmp_path / "masks" / "x.png")
    run("convert", tmp_path / "masks", tmp_path / "out", "--from", "instance-masks", "--images", tmp_path / "photos", "--class", "cell", "nucleus")  # fmt: skip
    content = json.loads((tmp_path / "out" / "all.json").read_text())
    found = [(a["category_id"], a["bbox"], a["area"]) for a in content["annotations"]]
    assert found == [(1, [3.0, 2.0, 6.0, 3.0], 18), (2, [10.0, 6.0, 2.0, 2.0], 4)]


def test_colors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (3, 1)).save(tmp_path / "photos" / "x.jpg")
    mask = Image.new("RGB", (3, 1), (128, 64, 0))
    mask.putpixel((1, 0), (0, 0, 255))
    mask.putpixel((2, 0), (0, 0, 0))
    mask.save(tmp_path / "masks" / "x.png")
    colors = tmp_path / "labelmap.txt"
    colors.write_text("# label:color_rgb:parts:actions\nroad:128,64,0::\nvoid:0,0,0::\nsea side:0,0,255::\n")  # fmt: skip
    arguments = ["--from", "color-masks", "--images", tmp_path / "photos", "--colors", colors]
    run("convert", tmp_path / "masks", tmp_path / "out", *arguments)
    labels = np.asarray(Image.open(tmp_path / "out" / "masks" / "x.png"))
    assert labels.tolist() == [[0, 1, 255]]
    assert (tmp_path / "out" / "classes.txt").read_text() == "road\nsea side\n"

    mask.putpixel((2, 0), (1, 0, 0))
    mask.save(tmp_path / "masks" / "x.png")
    error = fails(capsys, "convert", tmp_path / "masks", tmp_path / "no", *arguments)
    assert "does not name: " in error
    assert "(1, 0, 0), 33.33% of it" in error


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0 0.5 0.5 0.2", "neither a class and a box"),
        ("9 0.5 0.5 0.2 0.2", "classes that are not 0 to 1"),
        ("0 0.5 0.5 0.2 1.2", "not shares of the image"),
        ("0 0.5 nan 0.2 0.2", "not shares of the image"),
        ("cat 0.5 0.5 0.2 0.2", "no numbers"),
    ],
)
def test_wrong_yolo_lines_are_named(coco: Split, tmp_path: Path, line: str, problem: str) -> None:
    write_yolo([coco], tmp_path / "yolo", boxes=False)
    path = tmp_path / "yolo/labels/train/b/one.txt"
    path.write_text(f"\n{line}\n")
    with pytest.raises(FormatError, match=problem) as raised:
        read_yolo(tmp_path / "yolo")
    assert f"{path}:2" in str(raised.value)


def test_what_yolo_cannot_hold_is_an_error(coco: Split, tmp_path: Path) -> None:
    coco.content["annotations"][2]["segmentation"] = {"size": [56, 40], "counts": [0, 2240]}
    with pytest.raises(FormatError, match=r"or an RLE.*annotation 3"):
        write_yolo([coco], tmp_path / "yolo", boxes=False)
    shutil.rmtree(tmp_path / "yolo")
    write_yolo([coco], tmp_path / "yolo", boxes=True)


def test_split_keeps_classes_groups_and_copies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    content: dict = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": str(i)} for i in (1, 2)],
    }
    for number in range(200):
        name = f"film{number // 4}_frame{number % 4}.png"
        # A fifth shows the rare class; two films share a frame.
        data = b"same" if number in (5, 160) else rng.bytes(16)
        (tmp_path / name).write_bytes(data)
        content["images"].append({"id": number, "file_name": name})
        category = 2 if number // 4 % 5 == 0 else 1
        content["annotations"].append({"id": number, "image_id": number, "category_id": category})
    arguments = {"share": 0.2, "seed": 3, "group": r"film\d+"}
    train, val, lines = split_coco(content, tmp_path, **arguments)
    films = [{i["file_name"].partition("_")[0] for i in part["images"]} for part in (train, val)]
    assert not films[0] & films[1]
    assert {"film1", "film40"} <= films[0] or {"film1", "film40"} <= films[1]
    assert 36 <= len(val["images"]) <= 44
    rare = [sum(a["category_id"] == 2 for a in part["annotations"]) for part in (train, val)]
    assert 4 <= rare[1] <= 12
    assert sum(rare) == 40
    again = split_coco(content, tmp_path, **arguments)
    assert again == (train, val, lines)
    other, _, _ = split_coco(content, tmp_path, **{**arguments, "seed": 4})
    assert other["images"] != train["images"]


@pytest.mark.parametrize(
    ("images", "classes", "share", "held"),
    [(300, 1, 0.01, 3), (40, 1, 0.999, 39), (12, 3, 0.25, 3), (3, 3, 0.3, 1), (6, 6, 0.5, 3)],
)
def test_split_of_any_share_and_size(tmp_path: Path, images: int, classes: int, share: float, held: int) -> None:  # fmt: skip
    """Each class on as many images; both parts get some, of nearly the share."""
    numbers = range(images)
    for number in numbers:
        (tmp_path / str(number)).write_text(str(number))
    content = {
        "images": [{"id": n, "file_name": str(n)} for n in numbers],
        "annotations": [{"id": n, "image_id": n, "category_id": n % classes} for n in numbers],
        "categories": [{"id": n, "name": str(n)} for n in range(classes)],
    }
    train, val, _ = split_coco(content, tmp_path, share=share, seed=0)
    assert (len(train["images"]), len(val["images"])) == (images - held, held)


def test_check_tells_of_classes_copies_and_sizes(coco: Split, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    path = tmp_path / "all.json"
    path.write_text(json.dumps(coco.content), encoding="utf-8")
    data = [f"dataset.{s}_{k}={v}" for s in ("train", "val") for k, v in (("json", path), ("images", coco.images))]  # fmt: skip
    run("check", "--config-file", "configs/custom/mask_rcnn_comer_s.py", *data)
    printed = capsys.readouterr().out
    assert "widths 30 to 64 (median 40)" in printed
    assert re.search(r"große Schraube +2 +1 +1 +0\n", printed)
    assert "fewer than 20 objects, to label more of: nut (1), große Schraube (2)" in printed
    assert "3 images are in custom_train and in custom_val" in printed
    sheet = tmp_path / "sheet.png"
    run("show", "--config-file", "configs/custom/mask_rcnn_comer_s.py", "--output", sheet, *data)
    assert Image.open(sheet).width > 3 * 320
