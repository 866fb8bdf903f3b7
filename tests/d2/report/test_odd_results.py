"""Reports on data and results that are not the usual: by hand, against Detectron2's numbers, and in a browser."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.evaluation.coco_evaluation import _evaluate_predictions_on_coco
from omegaconf import OmegaConf
from PIL import Image
from pycocotools.coco import COCO

from comer_d2.d2.data.instances import InstanceData
from comer_d2.d2.data.panoptic import PanopticData
from comer_d2.d2.data.panoptic_png import write_panoptic_png
from comer_d2.d2.data.semantic import SemanticData
from comer_d2.d2.evaluation.panoptic import match_segments, panoptic_quality
from comer_d2.d2.report import plots
from comer_d2.d2.report.build import update_report
from comer_d2.d2.report.curves import curves
from comer_d2.d2.report.instances import report_instances
from comer_d2.d2.report.label_maps import report_label_maps
from comer_d2.d2.report.page import BEGIN, END, write_page
from comer_d2.d2.report.section import Case, Section, Table
from comer_d2.d2.report.segments import report_segments
from tests.browser import open_page

SIDE = 96
NAMES = ["$x^{$", "_bg_", "a|b"]


def write_images(folder: Path, count: int) -> list[dict[str, Any]]:
    folder.mkdir()
    for number in range(1, count + 1):
        Image.new("RGB", (SIDE, SIDE), (90, 120, 30)).save(folder / f"{number}.png")
    return [{"id": n, "file_name": f"{n}.png", "width": SIDE, "height": SIDE} for n in range(1, count + 1)]  # fmt: skip


def disc(x: float, y: float, w: float, h: float) -> dict[str, Any]:
    """RLE of the ellipse in a box."""
    ys, xs = np.ogrid[:SIDE, :SIDE]
    inside = ((xs - x - w / 2) / (w / 2)) ** 2 + ((ys - y - h / 2) / (h / 2)) ** 2 <= 1
    rle = mask_util.encode(np.asfortranarray(inside.astype(np.uint8)))
    return {**rle, "counts": rle["counts"].decode()}


def register(folder: Path, truth: dict[str, Any], results: list[dict[str, Any]]) -> Path:
    """Register a dataset as "odd_val" and write what was found in it; the results' file."""
    (folder / "val.json").write_text(json.dumps(truth))
    (folder / "results.json").write_text(json.dumps(results))
    split = {"json_file": str(folder / "val.json"), "images": str(folder / "images")}
    names = [category["name"] for category in truth["categories"]]
    InstanceData.register("odd_val", split, {"class_names": names})
    return folder / "results.json"


def found(image: int, category: int, box: list[float], score: float) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def test_boxes_alone_images_without_objects_and_crowds(tmp_path: Path) -> None:
    truth = {
        "images": write_images(tmp_path / "images", 3),
        "categories": [{"id": 10 * n, "name": name} for n, name in enumerate(NAMES, 1)],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 10, "bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0},
            {"id": 2, "image_id": 3, "category_id": 20, "bbox": [0, 0, 96, 96], "area": 9216, "iscrowd": 1},
        ],
    }  # fmt: skip
    results = [
        found(1, 10, [8, 8, 40, 40], 0.9),
        found(2, 10, [8, 8, 40, 40], 0.95),  # where nothing is
        found(3, 20, [8, 8, 40, 40], 0.9),  # in the crowd
    ]
    section = report_instances("odd_val", register(tmp_path, truth, results))
    titles = [table.title for table in section.tables]
    assert "Average precision of boxes" in titles
    assert "Average precision of masks" not in titles
    assert [(case.name, case.errors) for case in section.cases] == [("2.png", {"background": 1})]
    # A box of 8 to 48 of 96 pixels is an outline: between it and its label the photo is as it was.
    picture = Image.open(io.BytesIO(section.cases[0].prediction))
    inside = picture.getpixel((picture.width * 28 // SIDE, picture.height * 40 // SIDE))
    assert inside == pytest.approx((90, 120, 30), abs=6)
    plot = "".join(section.plots)
    assert all(re.search(rf">\s*{re.escape(name)}\s*<", plot) for name in NAMES)

    only_crowds = register(tmp_path, truth, results[2:])
    summary = dict(report_instances("odd_val", only_crowds).summary)
    assert (summary["missed"], summary["background"]) == ("1", "0")


def test_where_nothing_was_found_all_objects_are_missed(tmp_path: Path) -> None:
    truth = {
        "images": write_images(tmp_path / "images", 2),
        "categories": [{"id": 10 * n, "name": name} for n, name in enumerate(NAMES, 1)],
        "annotations": [
            {"id": n, "image_id": 2, "category_id": 10 * n, "bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0}
            for n in (1, 2)
        ],
    }  # fmt: skip
    section = report_instances("odd_val", register(tmp_path, truth, []))
    assert dict(section.summary)["missed"] == "2"
    assert [(case.name, case.errors) for case in section.cases] == [("2.png", {"missed": 2})]
    rows = {table.title: table.rows for table in section.tables}["Average precision of boxes"]
    assert [row[:3] for row in rows] == [["all", 2, 0.0], [NAMES[0], 1, 0.0], [NAMES[1], 1, 0.0], [NAMES[2], 0, None]]  # fmt: skip
    assert section.note == "Nothing was found in any image."

    nothing_there = register(tmp_path, truth | {"annotations": []}, [])
    assert report_instances("odd_val", nothing_there).cases == []


def test_sizes_of_masks_are_detectron2s(tmp_path: Path) -> None:
    # The false one has a box of 34 x 34, which is medium, around a disc of 0.79 of that, which is small.
    boxes = [[10, 10, 60, 60], [50, 50, 20, 20]]
    truth = {
        "images": write_images(tmp_path / "images", 1),
        "categories": [{"id": 1, "name": "disc"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "iscrowd": 0, "segmentation": (rle := disc(*box)), "area": float(mask_util.area(rle))}
            for n, box in enumerate(boxes, 1)
        ],
    }  # fmt: skip
    shapes = [([2, 2, 34, 34], 0.9), (boxes[0], 0.8), (boxes[1], 0.7)]
    results = [{**found(1, 1, box, s), "segmentation": disc(*box)} for box, s in shapes]
    path = register(tmp_path, truth, results)
    tables = {t.title: t.rows for t in report_instances("odd_val", path).tables}
    coco = COCO(tmp_path / "val.json")
    for task, title in (("bbox", "boxes"), ("segm", "masks")):
        expected = _evaluate_predictions_on_coco(coco, results, task).stats
        got = tables[f"Average precision of {title}"][0][2:8]
        assert got == [pytest.approx(100 * v, abs=0.05) if v > -1 else None for v in expected[:6]]
    small = [tables[f"Average precision of {title}"][0][5] for title in ("boxes", "masks")]
    assert small[0] != small[1]


def test_an_image_without_a_counted_pixel_is_not_among_the_worst(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 2)
    (tmp_path / "masks").mkdir()
    half = np.zeros((SIDE, SIDE), np.uint8)
    half[:, 48:] = 1
    Image.fromarray(half).save(tmp_path / "masks" / "1.png")
    Image.fromarray(np.full_like(half, 255)).save(tmp_path / "masks" / "2.png")
    pairs = [(str(tmp_path / "images" / f"{n}.png"), str(tmp_path / "masks" / f"{n}.png")) for n in (1, 2)]  # fmt: skip
    split = {"pairs": pairs, "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks")}
    SemanticData.register("odd_val", split, {"class_names": ["a", "b"], "ignore_label": 255})
    rle = mask_util.encode(np.ones((SIDE, SIDE), np.uint8, order="F"))
    rle["counts"] = rle["counts"].decode()
    entries = [{"file_name": image, "category_id": 0, "segmentation": rle} for image, _ in pairs]
    (tmp_path / "results.json").write_text(json.dumps(entries))
    section = report_label_maps("odd_val", tmp_path / "results.json")
    assert [(case.name, case.score) for case in section.cases] == [("1.png", 50.0)]
    assert dict(section.summary)["mIoU"] == "25.0"


def test_panoptic_quality_is_the_mean_before_rounding(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", 2)
    for folder in ("masks", "panoptic"):
        (tmp_path / folder).mkdir()
    truth = np.ones((2, SIDE, SIDE), np.int32)
    truth[0, :, 37:] = 2
    truth[1] = 0  # void alone
    predicted = np.ones_like(truth)
    predicted[0, :, 33:] = 2
    info = [{"id": n, "category_id": n, "area": 1, "iscrowd": 0} for n in (1, 2)]
    written = [
        {"image_id": n, "file_name": f"{n}.png", "segments_info": info[: 2 - n + 1]} for n in (1, 2)
    ]
    for n in (1, 2):
        write_panoptic_png(truth[n - 1], tmp_path / "masks" / f"{n}.png")
        write_panoptic_png(predicted[n - 1], tmp_path / "panoptic" / f"{n}.png")
    (tmp_path / "panoptic.json").write_text(json.dumps({"annotations": written}))
    categories = [{"id": n, "name": str(n), "isthing": 2 - n} for n in (1, 2)]
    true = [{**a, "segments_info": info if a["image_id"] == 1 else []} for a in written]
    content = {"images": images, "annotations": true, "categories": categories}
    (tmp_path / "val.json").write_text(json.dumps(content))
    split = {"category_ids": [1, 2], "json_file": str(tmp_path / "val.json"), "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks"), "instances": None}  # fmt: skip
    PanopticData.register("odd_val", split, {"class_names": ["a", "b"], "num_things": 1})
    section = report_segments("odd_val", tmp_path / "panoptic.json")
    classes = [{"id": n, "category_id": n - 1} for n in (1, 2)]
    table = match_segments(truth[0], classes, predicted[0], classes, 2)
    expected = panoptic_quality(table, [True, False])["PQ"]
    rounded = np.mean([row[2] for row in section.tables[0].rows])
    assert f"{rounded:.1f}" != f"{expected:.1f}"  # else this would show nothing
    assert dict(section.summary)["PQ"] == f"{expected:.1f}"
    assert [case.name for case in section.cases] == ["1.png"]


def test_sorting_and_filtering_with_odd_names(tmp_path: Path) -> None:
    rows: list[list[str | float | int | None]] = [["9 b", 5.0], ["c", None], ["a", 10.0], ["10 d", None], ["e", 7.5]]  # fmt: skip
    kinds = ["a|b", '<it\'s> "c"']
    cases = [Case(f"{n}.png", n, {kind: 1}, b"", b"") for n, kind in enumerate(kinds)]
    section = Section("Odd", tables=[Table("t", ["class", "AP"], rows)], cases=cases)
    page = write_page(
        tmp_path, title="<b>", facts=[], headlines=[], curves=[], sections=[section], batch=[]
    )
    with open_page(page.as_uri()) as view:
        column = "rows => rows.map(row => row.cells[0].textContent)"
        order = []
        for head in ("AP", "AP", "class"):
            view.get_by_role("columnheader", name=head, exact=True).click()
            order.append(view.locator("tbody tr").evaluate_all(column))
        assert order[0] == ["a", "e", "9 b", "c", "10 d"]
        assert order[1] == ["9 b", "e", "a", "c", "10 d"]
        assert order[2][2:] == ["a", "c", "e"]
        buttons = view.locator(".kinds button")
        assert buttons.all_text_contents() == kinds
        buttons.nth(1).click()
        assert view.locator(".case").filter(visible=True).locator("b").all_text_contents() == ["1.png"]  # fmt: skip


def test_curves_go_on_while_the_rest_stays(tmp_path: Path) -> None:
    """A run that gets no better still has its whole length in the report on its best model."""
    cfg = OmegaConf.create({"train": {"output_dir": str(tmp_path)}})
    assert update_report(cfg) is None
    metrics = tmp_path / "metrics.json"
    metrics.write_text('{"iteration": 0, "total_loss": 2.0}\n')
    page = write_page(
        tmp_path / "report", title="run", facts=[("iterations", "1")], headlines=[], curves=[],
        sections=[Section("Objects")], batch=[],
    )  # fmt: skip
    before = page.read_text(encoding="utf-8")
    assert "<svg" not in before
    lines = [{"iteration": i, "total_loss": 2.0 - i, "learning_rate": 1.0} for i in range(3)]
    metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    for _ in range(2):
        assert update_report(cfg) == page
    text = page.read_text(encoding="utf-8")
    assert text.count("<svg") == len(curves(metrics)) > 0
    assert re.sub(f"{BEGIN}.*{END}", "", text, flags=re.S) == re.sub(f"{BEGIN}.*{END}", "", before, flags=re.S)  # fmt: skip


def test_names_in_any_script_are_the_browsers_to_draw(recwarn: pytest.WarningsRecorder) -> None:
    text = plots.lines({"螺丝": ([0, 1], [0, 1]), "ключ": ([0], [1])}, title="t", x="iteration")
    text += plots.confusion(np.eye(3, dtype=int), ["螺丝", "ключ"], "missed", "background")
    assert text.count("螺丝") > 2
    assert not recwarn.list


def test_a_long_name_leaves_room_for_its_plot() -> None:
    text = plots.lines({"x" * 200: ([0, 1], [0, 1]), "y": ([0], [1])}, title="t", x="iteration")
    assert f"{'x' * 31}…<" in text
    assert "0.2<" not in text[text.index("matplotlib.axis_1") : text.index("matplotlib.axis_2")]
