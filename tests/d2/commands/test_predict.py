"""comer-d2 predict: folders, bad files, names that are equal, and the jsons that others read."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from comer_d2.__main__ import main
from comer_d2.d2.data.panoptic_png import read_panoptic_png
from tests.d2.untrained import DETECTOR, PANOPTIC, SEMANTIC, write_digits, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_digits(tmp_path_factory.mktemp("predict"))
    for name, kind in (("detector", DETECTOR), ("panoptic", PANOPTIC), ("semantic", SEMANTIC)):
        write_run(folder / name, folder, kind)
    return folder


def predict(model: Path, output: Path, *arguments: object) -> int:
    return main(["predict", str(model), "--output", str(output), *map(str, arguments)])


def pictures(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_equal_names_stay_apart(folder: Path, tmp_path: Path) -> None:
    image = Image.open(folder / "digits" / "val" / "00001.png")
    for name in ("a/1.png", "b/1.png", "b/1.jpg", "c.d/noend"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        image.convert("RGB").save(tmp_path / "in" / name, format="JPEG" if "jpg" in name else "PNG")
    assert predict(folder / "detector", tmp_path / "out", tmp_path / "in") == 0
    assert pictures(tmp_path / "out") == {"a/1.png", "b/1.png", "b/1.jpg"}
    files = [tmp_path / "in" / name for name in ("a/1.png", "b/1.png", "c.d/noend")]
    assert predict(folder / "detector", tmp_path / "files", *files) == 0
    assert pictures(tmp_path / "files") == {"a/1.png", "b/1.png", "c.d/noend.png"}
    assert Image.open(tmp_path / "files" / "a" / "1.png").size == (640, 640)


def test_pictures_never_replace_images(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "1.png"
    Image.new("RGB", (32, 32)).save(path)
    before = path.read_bytes()
    assert predict(folder / "detector", tmp_path, path) == 2
    assert "would replace it: choose another --output" in capsys.readouterr().err
    assert path.read_bytes() == before
    # An output folder within the input is not searched.
    for _ in range(2):
        assert predict(folder / "detector", tmp_path / "out", tmp_path) == 0
    assert pictures(tmp_path / "out") == {"1.png"}


def test_bad_images_are_left_out_and_the_rest_is_kept(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for number in (1, 3):
        image = Image.open(folder / "digits" / "val" / f"0000{number}.png")
        image.save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_text("no image")
    Image.fromarray(np.full((9, 9), 4000, np.uint16)).save(tmp_path / "4.png")
    out = tmp_path / "out"
    assert predict(folder / "detector", out, tmp_path, "--json", "--threshold", "0") == 1
    printed = capsys.readouterr()
    assert "2.png" in printed.err and "4.png" in printed.err
    assert "2 of 4 could not be read" in printed.err
    assert pictures(out) == {"1.png", "3.png", "results.json"}
    files = {entry["file_name"] for entry in json.loads((out / "results.json").read_text())}
    assert files == {str(tmp_path / "1.png"), str(tmp_path / "3.png")}


def test_results_are_kept_when_it_is_stopped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comer_d2.d2.commands.predict import Writer

    write, count = Writer.write, iter(range(9))

    def stop(self: Writer, result: object) -> None:
        if next(count) == 1:
            raise KeyboardInterrupt
        write(self, result)

    monkeypatch.setattr(Writer, "write", stop)
    val = folder / "digits" / "val"
    assert predict(folder / "detector", tmp_path, val, "--json", "--threshold", "0") == 130
    results = json.loads((tmp_path / "results.json").read_text())
    assert {entry["file_name"] for entry in results} == {str(val / "00001.png")}


def test_json_is_what_pycocotools_evaluates(folder: Path, tmp_path: Path) -> None:
    """Ids of the dataset, where a class's number is not its index and images have odd numbers."""
    content = json.loads((folder / "digits" / "val.json").read_text())
    for entry in content["categories"]:
        entry["id"] += 40
    for image in content["images"]:
        image["id"] *= 1000
    for entry in content["annotations"]:
        entry["category_id"] += 40
        entry["image_id"] *= 1000
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(content))
    val = folder / "digits" / "val"
    arguments = ["--json", "--threshold", "0", "--annotations", annotations, "--no-pictures"]
    assert predict(folder / "detector", tmp_path / "out", val, *arguments) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert {entry["image_id"] for entry in results} == {1000, 2000, 3000}
    assert {entry["category_id"] for entry in results} <= set(range(41, 51))
    truth = COCO(str(annotations))
    found = truth.loadRes(str(tmp_path / "out" / "results.json"))
    for kind in ("bbox", "segm"):
        evaluation = COCOeval(truth, found, kind)
        evaluation.evaluate()
        evaluation.accumulate()
        assert evaluation.eval["precision"].size
    assert pictures(tmp_path / "out") == {"results.json"}


def test_json_has_the_config_s_dataset_by_default(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    val = folder / "digits" / "val"
    stranger = tmp_path / "in" / "00001.png"  # a name that is in the dataset, another image
    stranger.parent.mkdir()
    Image.new("RGB", (64, 64)).save(stranger)
    arguments = ["--json", "--threshold", "0"]
    assert predict(folder / "detector", tmp_path / "out", val, stranger, *arguments) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    ids = {entry["file_name"]: entry["image_id"] for entry in results}
    assert [ids[str(val / f"0000{n}.png")] for n in (1, 2, 3)] == [1, 2, 3]
    assert ids[str(stranger)] == 4
    assert "1 images are not in the data's json" in capsys.readouterr().out


def test_panoptic_and_semantic_maps(folder: Path, tmp_path: Path) -> None:
    val = folder / "digits-panoptic" / "val"
    for kind in ("panoptic", "semantic"):
        assert predict(folder / kind, tmp_path / kind, val, "--label-maps") == 0
        assert {"00001.png", "label_maps/00001.png.png"} <= pictures(tmp_path / kind)
    labels = np.asarray(Image.open(tmp_path / "semantic" / "label_maps" / "00001.png.png"))
    assert labels.shape == (128, 128) and labels.max() < 11
    content = json.loads((tmp_path / "panoptic" / "panoptic.json").read_text())
    truth = json.loads((folder / "digits-panoptic" / "panoptic_val.json").read_text())
    known = {category["id"] for category in truth["categories"]}
    for entry in content["annotations"]:
        ids = read_panoptic_png(tmp_path / "panoptic" / "label_maps" / entry["file_name"])
        assert set(np.unique(ids)) - {0} == {s["id"] for s in entry["segments_info"]}
        assert {s["category_id"] for s in entry["segments_info"]} <= known


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--threshold", "30"], "threshold 30: scores are from 0 to 1"),
        (["--class-threshold", "cat=0.5"], "threshold for 'cat': the classes are '0', '1'"),
        (["nowhere"], "'nowhere' does not exist"),
        (["--config-file", "nowhere.py"], "'nowhere.py' does not exist"),
        (["--overlap", "0.5"], "--overlap is for --tile"),
        (["--seconds", "3"], "--seconds is for videos and cameras"),
        (["--annotations", "val.json"], "--annotations is for --json and --label-maps"),
        (["--tile", "64", "--batch-size", "2"], "--batch-size is for whole images"),
        (["--label-maps"], "--label-maps: this model predicts no label maps"),
    ],
)
def test_mistakes_in_one_line(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture,
    arguments: list[str],
    message: str,
) -> None:
    photo = folder / "digits" / "val" / "00001.png"
    assert predict(folder / "detector", tmp_path / "out", photo, *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("comer-d2 predict: error:")
    assert message in error[0]
    assert not (tmp_path / "out").exists()


def test_compare(folder: Path, tmp_path: Path) -> None:
    for kind in ("detector", "panoptic", "semantic"):
        output = tmp_path / f"{kind}.png"
        code = main(["compare", str(folder / kind), "--count", "2", "--output", str(output)])
        assert code == 0
        assert min(Image.open(output).size) > 256


def test_tiles_and_views(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    photo = folder / "digits-panoptic" / "val" / "00001.png"
    (tmp_path / "bad.png").write_text("no image")
    arguments = [photo, tmp_path / "bad.png", "--tile", "64", "--label-maps", "--no-pictures", "--override", "dataset.val_json=no.json"]  # fmt: skip
    assert predict(folder / "semantic", tmp_path / "out", *arguments) == 1
    printed = capsys.readouterr()
    assert "bad.png" in printed.err and "category ids" not in printed.out
    (path,) = (tmp_path / "out").rglob("00001.png.png")
    assert Image.open(path).size == (128, 128)
    assert predict(folder / "detector", tmp_path / "b", photo, "--flip", "--scales", "1", "2") == 0
    assert predict(folder / "panoptic", tmp_path / "b", photo, "--flip") == 2


def test_patterns_csv_and_yolo(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pattern = folder / "digits" / "va*" / "0000[12].png"
    arguments = ["--threshold", "0", "--csv", "--yolo", "--json", "--no-pictures"]
    assert predict(folder / "detector", tmp_path, pattern, *arguments) == 0
    entries = json.loads((tmp_path / "results.json").read_text())
    with (tmp_path / "objects.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(entries) > 0
    for row, entry in zip(rows, entries, strict=True):
        x, y, w, h = entry["bbox"]
        assert row["image"] == entry["file_name"]
        corners = [float(row[key]) for key in ("x0", "y0", "x1", "y1")]
        np.testing.assert_allclose(corners, [x, y, x + w, y + h], atol=0.006)
    lines = [
        line.split()
        for number in (1, 2)
        for line in (tmp_path / "labels" / f"0000{number}.txt").read_text().splitlines()
    ]
    for line, entry in zip(lines, entries, strict=True):
        x, y, w, h = (float(v) * 128 for v in line[1:5])
        np.testing.assert_allclose([x - w / 2, y - h / 2, w, h], entry["bbox"], atol=1e-3)
        assert float(line[5]) == pytest.approx(entry["score"], abs=1e-4)
    assert predict(folder / "semantic", tmp_path / "no", pattern, "--csv") == 2
    assert "finds no objects" in capsys.readouterr().err
    assert predict(folder / "semantic", tmp_path / "no", pattern, "--threshold", "0.3") == 2
    assert "--threshold is for models that find objects" in capsys.readouterr().err
    assert predict(folder / "detector", tmp_path / "no", "nothing*.png") == 2
    assert "'nothing*.png' fits no file" in capsys.readouterr().err


@pytest.mark.slow
def test_predictions_have_the_ap_of_the_run(learnt_run: Path, digits: Path, tmp_path: Path) -> None:
    """On the same images as the evaluation at the end of a training that has learnt something."""
    images, annotations = digits / "digits" / "val", digits / "digits" / "val.json"
    arguments = ["--json", "--threshold", "0", "--annotations", annotations, "--no-pictures"]
    assert predict(learnt_run, tmp_path, images, *arguments) == 0
    truth = COCO(str(annotations))
    evaluation = COCOeval(truth, truth.loadRes(str(tmp_path / "results.json")), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    measured = json.loads((learnt_run / "evaluation.json").read_text())["results"]["bbox"]
    assert measured["AP"] > 5
    assert 100 * evaluation.stats[0] == pytest.approx(measured["AP"], abs=1e-6)
