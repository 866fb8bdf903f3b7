"""Annotations of other tools that are wrong: one error that names file and fix, nothing left out in silence."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from comer_d2.__main__ import main

SIZE = (40, 30)


def photo(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 255, (*SIZE[::-1], 3), np.uint8)
    Image.fromarray(noise).save(path)


@pytest.fixture
def refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs `comer-d2 data convert`, which has to end in an error with these words."""

    def run(source: str, kind: str, *words: str, more: tuple[str, ...] = ()) -> None:
        argv = ["data", "convert", str(tmp_path / source), str(tmp_path / "new" / "out"), "--from", kind]  # fmt: skip
        assert main([*argv, *more]) == 2
        error = capsys.readouterr().err
        assert [word for word in words if word not in error] == [], error
        assert not (tmp_path / "new" / "out").exists()  # nothing half written, not even a folder

    return run


YOLO = {"train": "images/train", "names": ["a", "b"]}


def yolo(folder: Path, described: dict[str, Any], label: bytes = b"0 .5 .5 .2 .2\n") -> None:
    photo(folder / "images/train/1.png")
    (folder / "images/none").mkdir()
    (folder / "labels/train").mkdir(parents=True)
    (folder / "labels/train/1.txt").write_bytes(label)
    (folder / "data.yaml").write_text(json.dumps(described))  # which is YAML


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": ["a", "a"]}, ("class names that come twice", "'a'")),
        ({"names": "ab"}, ("names: 'ab': a list",)),
        ({"names": 3}, ("names: 3: a list",)),
        ({"names": ["a", True]}, ("names: True is no text", "quotation marks")),
        ({"names": {"0": "a", "x": "b"}}, ("names has the numbers 0, x",)),
        ({"train": 5}, ("train: 5: a folder",)),
        ({"nc": 3}, ("nc is 3, and there are 2 names",)),
        ({"val": "images/none"}, ("folders without an image", "images/none")),
        ({"train": "images/train/1.png"}, ("cannot be read as text", "1.png")),
    ],
)
def test_wrong_data_yaml(tmp_path: Path, refuses, changes: dict, words: tuple[str, ...]) -> None:
    yolo(tmp_path, YOLO | changes)
    refuses("data.yaml", "yolo", "data.yaml", *words)


def test_yolo_labels_that_are_no_text_or_of_two_images(tmp_path: Path, refuses) -> None:
    yolo(tmp_path, YOLO, b"0 .5 .5 .2 .2 \xe9\n")
    photo(tmp_path / "images/train/1.jpg")
    refuses("data.yaml", "yolo", "cannot be read as text", "differ in the ending alone", "1.txt")


def test_yolo_labels_of_no_image_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    yolo(tmp_path, YOLO)
    (tmp_path / "labels/train/lost.txt").write_text("0 .5 .5 .2 .2\n")
    photo(tmp_path / "other/9.png")
    (tmp_path / "list.txt").write_text(f"images/train/1.png\n{tmp_path}/other/9.png\n")
    (tmp_path / "data.yaml").write_text(json.dumps(YOLO | {"train": "list.txt"}))
    monkeypatch.chdir(
        tmp_path
    )  # a relative and an absolute path: their common folder was never found
    assert main(["data", "convert", "data.yaml", "out", "--from", "yolo"]) == 0
    assert "1 .txt of no image" in (told := capsys.readouterr().out) and "lost.txt" in told
    names = [image["file_name"] for image in json.loads(Path("out/train.json").read_text())["images"]]  # fmt: skip
    assert names == ["images/train/1.png", "other/9.png"]


def test_what_stops_in_the_middle_leaves_nothing(tmp_path: Path, refuses) -> None:
    yolo(tmp_path, YOLO | {"val": "images/val"})
    photo(tmp_path / "images/val/1.png")
    refuses("data.yaml", "yolo", "two images of this name", more=("--to", "voc", "--boxes"))


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        (
            "yolo",
            ("--images", "x"),
            "--images is for labelme, via, coco, instance-masks, color-masks",
        ),
        ("voc", ("--class", "x"), "--class is for via, instance-masks"),
        ("coco", ("--attribute", "x"), "--attribute is for via"),
        ("via", ("--colors", "x"), "--colors is for color-masks"),
        ("color-masks", ("--to", "yolo"), "--to is for objects"),
        ("color-masks", ("--boxes",), "--boxes is for objects"),
        ("via", ("--images", ".", "--class", "a", "b"), "--class for via is one name"),
    ],
)
def test_options_in_vain(
    tmp_path: Path, refuses, kind: str, more: tuple[str, ...], words: str
) -> None:
    yolo(tmp_path, YOLO)
    refuses("data.yaml", kind, words, more=more)


def test_annotations_without_an_object(tmp_path: Path, refuses) -> None:
    yolo(tmp_path, YOLO, b"")
    refuses("data.yaml", "yolo", "no objects in it")
    (tmp_path / "labels/train/1.txt").unlink()
    refuses("data.yaml", "yolo", "no objects in it")


def test_outside_of_the_image_and_no_later_check(tmp_path: Path, refuses) -> None:
    """To COCO it goes as it is, for `data check`; YOLO's writer moved the corners to the edge."""
    photo(tmp_path / "1.png")
    shape = {"label": "a", "points": [[20, 10], [99, 10], [99, 20]]}
    (tmp_path / "1.json").write_text(json.dumps({"imagePath": "1.png", "shapes": [shape]}))
    words = ("1 boxes outside their image", "1.json, shape 1: [20.0, 10.0, 79.0, 10.0]")
    refuses("", "labelme", *words, more=("--to", "yolo"))
    assert (
        main(["data", "convert", str(tmp_path), str(tmp_path / "coco"), "--from", "labelme"]) == 0
    )


def test_wrong_voc(tmp_path: Path, refuses) -> None:
    for name in ("JPEGImages/1.jpg", "JPEGImages/1.png", "JPEGImages/2.jpg"):
        photo(tmp_path / name)
    size = "<size><width>4000</width><height>3000</height></size>"
    for name in ("1", "2"):
        path = tmp_path / f"Annotations/{name}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"<annotation>{size if name == '2' else ''}</annotation>")
    refuses("", "voc", "differ in the ending alone: ", "1.png", "another size", "2.xml: 4000 x 3000, the image: 40 x 30")  # fmt: skip
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    (tmp_path / "ImageSets/Main/train.txt").write_bytes(b"\xff1")
    refuses("", "voc", "cannot be read as text", "train.txt")


def test_wrong_labelme(tmp_path: Path, refuses) -> None:
    photo(tmp_path / "1.jpg")
    shape = {"label": "a", "points": [[1, 1], [9, 1], [9, 9]], "group_id": [1]}
    for name, changes in {
        "first": {"shapes": [shape]},
        "again": {"shapes": [shape]},
        "none": {"shapes": None},
        "large": {"shapes": [shape], "imageWidth": 400, "imageHeight": 300},
    }.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({"imagePath": "1.jpg", **changes}))
    refuses("", "labelme", "2 annotations of an image that has others already", "files that are not LabelMe's", "none.json", "large.json: 400 x 300")  # fmt: skip


@pytest.mark.parametrize(
    ("entries", "word"),
    [
        ([("1.jpg", []), ("1.jpg", [])], "an image that has others already"),
        ([("/1.jpg", [])], "images outside of"),
        ([("1.jpg", None)], "not VIA's annotations"),
    ],
)
def test_wrong_via(tmp_path: Path, refuses, entries: list, word: str) -> None:
    photo(tmp_path / "photos/1.jpg")
    photo(tmp_path / "1.jpg")
    names = [f"{tmp_path}{name}" if name.startswith("/") else name for name, _ in entries]
    content = {n: {"filename": names[n], "regions": r} for n, (_, r) in enumerate(entries)}
    (tmp_path / "via.json").write_text(json.dumps(content))
    refuses("via.json", "via", word, more=("--images", str(tmp_path / "photos")))


def test_wrong_masks(tmp_path: Path, refuses) -> None:
    for name in ("1.jpg", "1.png", "2.png", "3.png"):
        photo(tmp_path / "photos" / name)
    (tmp_path / "masks").mkdir()
    for name in ("1.png", "2.png", "2.bmp"):
        Image.new("L", (20, 15), 1).save(tmp_path / "masks" / name)
    (tmp_path / "masks/3.png").write_bytes(b"no image")
    (tmp_path / "colors.txt").write_text("all 1 1 1\n")
    given = ("--images", str(tmp_path / "photos"))
    twice = ("masks whose names differ in the ending alone", "2.bmp", "1.jpg and 1.png")
    refuses("masks", "instance-masks", *twice, "another size", "cannot be read", "3.png", more=(*given, "--class", "a"))  # fmt: skip
    refuses("masks", "color-masks", *twice, "another size", "cannot be read", "3.png", more=(*given, "--colors", str(tmp_path / "colors.txt")))  # fmt: skip


def test_masks_in_jpeg_and_colours_of_no_label_map(tmp_path: Path, refuses) -> None:
    photo(tmp_path / "photos/1.png")
    photo(tmp_path / "masks/1.jpg")
    given = ("--images", str(tmp_path / "photos"))
    refuses("masks", "instance-masks", "masks in JPEG", "1.jpg", more=(*given, "--class", "a"))
    colors = tmp_path / "colors.txt"
    more = (*given, "--colors", str(colors))
    colors.write_text("ignore 0 0 0\n")
    refuses("masks", "color-masks", "0 classes; a label map has 1 to 254", more=more)
    colors.write_text("".join(f"k{i} {i} 0 0\n" for i in range(255)))  # the last one's is 254
    refuses("masks", "color-masks", "255 classes; a label map has", more=more)
    colors.write_text("x" * 5000)
    refuses("masks", "color-masks", f"colors.txt:1: '{'x' * 80}': a name and three", more=more)


COCO: dict[str, Any] = {
    "images": [{"id": 1, "file_name": "1.jpg", "width": 40, "height": 30}],
    "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}],
    "categories": [{"id": 1, "name": "a"}],
}


@pytest.mark.parametrize(
    ("part", "changes", "word"),
    [
        ("annotations", {"image_id": 7}, "an image that is not listed"),
        ("annotations", {"category_id": 7}, "a category that is not listed"),
        ("annotations", {"bbox": [100, 100, 50, 50]}, "boxes outside their image"),
        ("annotations", {"bbox": None}, "annotations without 'bbox'"),
        ("annotations", {"segmentation": [["a"]]}, "polygons"),
        ("images", {"width": 400}, "images of another size"),
        ("images", {"file_name": "no.jpg"}, "no.jpg: there is no such file"),
    ],
)
def test_wrong_coco_is_not_converted_or_split(
    tmp_path: Path, refuses, capsys: pytest.CaptureFixture[str], part: str, changes: dict, word: str
) -> None:
    photo(tmp_path / "photos/1.jpg")
    content = COCO | {part: [COCO[part][0] | changes]}
    (tmp_path / "all.json").write_text(json.dumps(content))
    given = ("--images", str(tmp_path / "photos"))
    refuses("all.json", "coco", "all.json", word, more=(*given, "--to", "yolo"))
    assert main(["data", "split", str(tmp_path / "all.json"), str(tmp_path / "parts"), *given]) == 2
    assert word in capsys.readouterr().err
    assert not (tmp_path / "parts").exists()


def test_what_is_not_there_is_named(tmp_path: Path, refuses) -> None:
    photo(tmp_path / "photos/1.jpg")
    (tmp_path / "all.json").write_text(json.dumps(COCO))
    refuses("all.json", "coco", "error: --images is needed for --from coco\n")
    refuses("all.json", "coco", "--images no/photos: there is no such", more=("--images", "no/photos"))  # fmt: skip
    given = ("--images", str(tmp_path / "photos"))
    refuses("photos", "coco", "photos:\n  a folder, no file\n", more=given)
    boxes = "annotation 1 of 1.jpg has a box alone"
    refuses("all.json", "coco", boxes, more=(*given, "--to", "panoptic"))


@pytest.mark.parametrize("outside", ["../private.jpg", "absolute"])
@pytest.mark.parametrize("target", ["yolo", "voc", "labelme"])
def test_copies_stay_in_their_folder(tmp_path: Path, refuses, target: str, outside: str) -> None:
    photo(tmp_path / "photos/1.jpg")
    photo(tmp_path / "private.jpg")
    name = str(tmp_path / "private.jpg") if outside == "absolute" else outside
    content = COCO | {"images": [COCO["images"][0] | {"file_name": name}]}
    (tmp_path / "all.json").write_text(json.dumps(content))
    before = set(tmp_path.rglob("*"))
    refuses("all.json", "coco", name, "has to lie below", more=("--images", str(tmp_path / "photos"), "--to", target))  # fmt: skip
    made = {path for path in set(tmp_path.rglob("*")) - before if path.is_file()}
    assert made == set()


def test_an_output_that_is_a_file_and_wrong_options_of_split_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yolo(tmp_path, YOLO)
    assert main(["data", "convert", str(tmp_path), str(tmp_path / "data.yaml"), "--from", "yolo"]) == 2  # fmt: skip
    assert str(tmp_path / "data.yaml") in capsys.readouterr().err
    photo(tmp_path / "photos/1.jpg")
    (tmp_path / "all.json").write_text(json.dumps(COCO))
    argv = ["data", "split", str(tmp_path / "all.json"), str(tmp_path / "parts"), "--images", str(tmp_path / "photos")]  # fmt: skip
    for option, value, word in (
        ("--group", "(", "no regular expression"),
        ("--group", "(x)?1", "does not fit '1.jpg'"),
        ("--seed", "-1", "--seed -1: "),
    ):
        assert main([*argv, option, value]) == 2
        assert word in capsys.readouterr().err
