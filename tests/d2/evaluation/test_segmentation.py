"""Panoptic quality by hand-computed cases; mIoU against Detectron2's own."""

import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator, sem_seg_evaluation
from PIL import Image
from pycocotools.coco import COCO
from scipy.ndimage import grey_erosion

from comer_d2.d2.data.panoptic_png import (
    id_to_rgb,
    read_panoptic_png,
    rgb_to_id,
    write_panoptic_png,
)
from comer_d2.d2.errors import UserError
from comer_d2.d2.evaluation.panoptic import (
    FN,
    FP,
    IOU,
    TP,
    PanopticEvaluator,
    match_segments,
    panoptic_quality,
)
from comer_d2.d2.evaluation.semantic import SemanticEvaluator

PERSON, DOG, SKY = range(3)


def row(*runs: tuple[int, int]) -> np.ndarray:
    """(id, length) runs -> a map of one line."""
    return np.concatenate([np.full(length, i) for i, length in runs])[None]


def segments(*pairs: tuple[int, int], crowds: tuple[int, ...] = ()) -> list[dict]:
    return [{"id": i, "category_id": c, "iscrowd": int(i in crowds)} for i, c in pairs]


def match(truth, truth_info, prediction, prediction_info) -> np.ndarray:
    return match_segments(truth, truth_info, prediction, prediction_info, num_classes=3)


def test_a_match_needs_more_than_half() -> None:
    # 8 common of 10 in all.
    truth = row((1, 10), (2, 5))
    prediction = row((7, 8), (8, 2), (0, 5))
    table = match(
        truth, segments((1, PERSON), (2, SKY)), prediction, segments((7, PERSON), (8, DOG))
    )
    assert table[PERSON].tolist() == [0.8, 1, 0, 0]
    assert table[DOG].tolist() == [0, 0, 1, 0]  # predicted, and not there
    assert table[SKY].tolist() == [0, 0, 0, 1]  # there, and not predicted
    # 3 of 6 is not more than half.
    half = match(row((1, 6)), segments((1, PERSON)), row((5, 3), (0, 3)), segments((5, PERSON)))
    assert half[PERSON].tolist() == [0, 0, 1, 1]


def test_another_class_does_not_match() -> None:
    table = match(row((1, 9)), segments((1, PERSON)), row((1, 9)), segments((1, DOG)))
    assert table[PERSON].tolist() == [0, 0, 0, 1]
    assert table[DOG].tolist() == [0, 0, 1, 0]


def test_void_pixels_of_the_truth_do_not_count() -> None:
    # 6 common; the prediction's 4 others are void: IoU 6 / 6, not 6 / 10.
    truth, prediction = row((1, 6), (0, 14)), row((2, 10), (3, 10))
    table = match(truth, segments((1, DOG)), prediction, segments((2, DOG), (3, PERSON)))
    assert table[DOG].tolist() == [1, 1, 0, 0]
    assert table[PERSON].tolist() == [0, 0, 0, 0]  # all on void: no false positive


def test_half_on_void_is_still_a_false_positive() -> None:
    table = match(row((0, 5), (1, 5)), segments((1, SKY)), row((2, 10)), segments((2, DOG)))
    assert table[DOG, FP] == 1
    table = match(row((0, 6), (1, 4)), segments((1, SKY)), row((2, 10)), segments((2, DOG)))
    assert table[DOG, FP] == 0


def test_crowds_are_neither_missed_nor_matched() -> None:
    truth, info = row((1, 10)), segments((1, PERSON), crowds=(1,))
    assert match(truth, info, row((0, 10)), []).sum() == 0
    # Exactly the crowd, of its class: excused. Of another class: a false positive.
    assert match(truth, info, row((4, 10)), segments((4, PERSON))).sum() == 0
    assert match(truth, info, row((4, 10)), segments((4, DOG)))[DOG, FP] == 1


def test_a_segment_of_the_truth_without_pixels_is_not_missed() -> None:
    table = match(row((1, 4)), segments((1, DOG), (2, DOG)), row((1, 4)), segments((1, DOG)))
    assert table[DOG].tolist() == [1, 1, 0, 0]


def test_ids_without_a_segment_are_refused() -> None:
    with pytest.raises(ValueError, match=r"segments \[5\] of the prediction"):
        match(row((1, 4)), segments((1, DOG)), row((5, 4)), [])
    with pytest.raises(ValueError, match=r"size \(1, 3\), truth \(1, 4\)"):
        match(row((1, 4)), segments((1, DOG)), row((1, 3)), segments((1, DOG)))


def test_quality_by_hand() -> None:
    table = np.zeros((4, 4))
    table[PERSON, [IOU, TP, FP, FN]] = [1.5, 2, 1, 1]  # SQ 3/4, RQ 2/3, PQ 1/2
    table[SKY, [IOU, TP]] = [0.9, 1]  # SQ 0.9, RQ 1, PQ 0.9
    table[DOG, FN] = 1  # all 0
    # The fourth class occurs nowhere: part of no mean.
    result = panoptic_quality(table, is_thing=[True, True, False, True])
    assert result["PQ"] == pytest.approx(100 * (0.5 + 0.9 + 0) / 3)
    assert result["SQ"] == pytest.approx(100 * (0.75 + 0.9 + 0) / 3)
    assert result["RQ"] == pytest.approx(100 * (2 / 3 + 1 + 0) / 3)
    assert result["PQ_th"] == pytest.approx(25)
    assert result["SQ_st"] == pytest.approx(90)
    assert np.isnan(panoptic_quality(np.zeros((1, 4)), [True])["PQ"])


def test_two_images_counted_by_hand(tmp_path: Path) -> None:
    """Through files and evaluator: TP, FP and FN of things and stuff, void pixels and a crowd."""
    sky, dog = 0, 1
    truth = [
        [[1, 1, 1, 2, 2, 2], [1, 1, 1, 2, 2, 2], [3, 3, 3, 3, 3, 3], [0, 0, 3, 3, 3, 3]],
        [[1, 1, 1, 1], [2, 2, 2, 2]],
    ]
    truth_info = [
        segments((1, dog), (2, dog), (3, sky)),
        segments((1, dog), (2, sky), crowds=(1,)),
    ]
    prediction = [
        [[5, 5, 5, 6, 6, 7], [5, 5, 5, 6, 6, 7], [8, 8, 8, 8, 8, 8], [8, 8, 8, 8, 8, 0]],
        [[3, 3, 3, 3], [4, 4, 0, 0]],
    ]
    prediction_info = [
        segments((5, dog), (6, dog), (7, dog), (8, sky)),
        segments((3, dog), (4, sky)),
    ]
    records = []
    for number, (ids, info) in enumerate(zip(truth, truth_info, strict=True)):
        path = tmp_path / f"{number}.png"
        write_panoptic_png(np.array(ids), path)
        records.append(
            {"file_name": f"{number}.jpg", "pan_seg_file_name": str(path), "segments_info": info}
        )
    name = "test_seg_by_hand"
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(
        stuff_classes=["sky", "dog"],
        thing_dataset_id_to_contiguous_id={10: dog},
        stuff_dataset_id_to_contiguous_id={20: sky},
    )
    try:
        evaluator = PanopticEvaluator(name)
        for record, ids, info in zip(records, prediction, prediction_info, strict=True):
            evaluator.process([record], [{"panoptic_seg": (torch.tensor(ids), info)}])
        result = evaluator.evaluate()["panoptic_seg"]
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    # Dogs: 5 is 1 (6 of 6 pixels), 6 is 2 (4 of 6), 7 is none (2 of 6), 3 is excused by the crowd.
    # Sky: 8 and 3 have 9 pixels in common of 10 that are not void; 4 has 2 of 4, which is not
    # more than half: one predicted in vain, one missed.
    dogs, skies = (1 + 4 / 6) / (2 + 0.5), 0.9 / (1 + 0.5 + 0.5)
    expected = {
        "PQ": (dogs + skies) / 2,
        "SQ": ((1 + 4 / 6) / 2 + 0.9) / 2,
        "RQ": (2 / 2.5 + 1 / 2) / 2,
        "PQ_th": dogs,
        "PQ_st": skies,
        "RQ_th": 2 / 2.5,
        "SQ_st": 0.9,
        "PQ-dog": dogs,
        "PQ-sky": skies,
    }
    for key, value in expected.items():
        assert result[key] == pytest.approx(100 * value), key


def test_png_holds_every_id(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 255, 256], [65535, 65536, 8_000_000, 256**3 - 1]])
    assert id_to_rgb(np.array([256 + 2])).tolist() == [[2, 1, 0]]
    write_panoptic_png(ids, tmp_path / "a.png")
    assert (read_panoptic_png(tmp_path / "a.png") == ids).all()
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]
    assert (rgb_to_id(id_to_rgb(ids)) == ids).all()
    with pytest.raises(ValueError, match="16777215"):
        id_to_rgb(np.array([256**3]))


@pytest.fixture
def two_images(tmp_path: Path):
    """A registered data set with labels and panoptic maps of two random images."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(2):
        ids = rng.integers(0, 4, (6, 9))  # 0 void, 1 and 2 of class 1, 3 of class 0
        write_panoptic_png(ids, tmp_path / f"p{number}.png")
        labels = np.array([255, 1, 1, 0])[ids].astype(np.uint8)
        Image.fromarray(labels).save(tmp_path / f"s{number}.png")
        info = [
            {"id": 1, "category_id": 1},
            {"id": 2, "category_id": 1},
            {"id": 3, "category_id": 0},
        ]
        records.append(
            {
                "file_name": f"{number}.jpg",
                "image_id": number,
                "pan_seg_file_name": str(tmp_path / f"p{number}.png"),
                "segments_info": info,
            }
        )
    labelled = [
        {
            "file_name": r["file_name"],
            "image_id": r["image_id"],
            "sem_seg_file_name": r["pan_seg_file_name"].replace("p0", "s0").replace("p1", "s1"),
        }
        for r in records
    ]
    names = ["sky", "dog", "never"]
    for name, content in (("test_seg_pan", records), ("test_seg_sem", labelled)):
        DatasetCatalog.register(name, lambda content=content: content)
        MetadataCatalog.get(name).set(stuff_classes=names, ignore_label=255)
    MetadataCatalog.get("test_seg_pan").set(
        thing_dataset_id_to_contiguous_id={10: 1, 11: 2},
        stuff_dataset_id_to_contiguous_id={20: 0},
    )
    yield records
    for name in ("test_seg_pan", "test_seg_sem"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def test_mean_iou_is_detectron2s(two_images) -> None:
    theirs = SemSegEvaluator("test_seg_sem", distributed=False)
    evaluators = [theirs, SemanticEvaluator("test_seg_sem"), SemanticEvaluator("test_seg_pan")]
    for evaluator in evaluators:
        evaluator.reset()
    for record in two_images:
        output = {"sem_seg": torch.rand(3, 6, 9)}
        for evaluator in evaluators:
            evaluator.process([record], [output])
    expected, *found = (evaluator.evaluate()["sem_seg"] for evaluator in evaluators)
    for result in found:
        assert set(result) == set(expected)
        assert result == pytest.approx(expected, nan_ok=True)


class OpenCV:
    """What Detectron2 uses of OpenCV to find boundaries."""

    BORDER_CONSTANT = 0

    @staticmethod
    def copyMakeBorder(
        mask: np.ndarray, top: int, bottom: int, left: int, right: int, kind: int, value: int
    ) -> np.ndarray:
        return np.pad(mask, ((top, bottom), (left, right)), constant_values=value)

    @staticmethod
    def erode(mask: np.ndarray, kernel: np.ndarray, iterations: int) -> np.ndarray:
        for _ in range(iterations):
            mask = grey_erosion(mask, kernel.shape, mode="constant", cval=255)
        return mask


@pytest.mark.parametrize("fill", [0, 252])
def test_mean_iou_is_detectron2s_with_opencv_too(
    two_images, monkeypatch: pytest.MonkeyPatch, fill: int
) -> None:
    """Boundary IoU comes with it, up to where bytes have no number left for "ignored"."""
    monkeypatch.setattr(sem_seg_evaluation, "_CV2_IMPORTED", True)
    monkeypatch.setattr(sem_seg_evaluation, "cv2", OpenCV, raising=False)
    metadata = MetadataCatalog.get("test_seg_sem")
    names = [*metadata.stuff_classes, *map(str, range(fill))]
    del metadata.stuff_classes
    metadata.stuff_classes = names
    theirs, ours = (kind("test_seg_sem", False) for kind in (SemSegEvaluator, SemanticEvaluator))
    for evaluator in (theirs, ours):
        evaluator.reset()
        for record in two_images:
            torch.manual_seed(0)
            evaluator.process([record], [{"sem_seg": torch.rand(len(names), 6, 9)}])
    expected, found = (evaluator.evaluate()["sem_seg"] for evaluator in (theirs, ours))
    assert ("BoundaryIoU-dog" in found) == (len(names) < 255)
    compared = {key: value for key, value in expected.items() if key in found}
    assert set(found) == set(compared)
    assert found == pytest.approx(compared, nan_ok=True)


def test_a_perfect_prediction(two_images, tmp_path: Path) -> None:
    evaluator = PanopticEvaluator("test_seg_pan", output_dir=tmp_path / "out")
    for record in two_images:
        ids = torch.from_numpy(read_panoptic_png(record["pan_seg_file_name"]))
        info = [dict(segment, isthing=True) for segment in record["segments_info"]]
        evaluator.process([record], [{"panoptic_seg": (ids, info)}])
    result = evaluator.evaluate()["panoptic_seg"]
    assert result["PQ"] == result["PQ_th"] == result["PQ_st"] == 100
    assert result["PQ-dog"] == 100
    assert "PQ-never" not in result
    written = (tmp_path / "out" / "panoptic.json").read_text()
    assert '"category_id": 10' in written  # the data set's own id
    assert (read_panoptic_png(tmp_path / "out" / "panoptic" / "p1.png") == ids.numpy()).all()


def test_a_wrong_size_names_the_file(two_images) -> None:
    with pytest.raises(UserError, match=r"0\.jpg: the labels have size"):
        SemanticEvaluator("test_seg_pan").process(
            two_images[:1], [{"sem_seg": torch.rand(3, 5, 9)}]
        )
    with pytest.raises(UserError, match=r"p0\.png: prediction has size"):
        PanopticEvaluator("test_seg_pan").process(
            two_images[:1], [{"panoptic_seg": (torch.zeros(5, 9, dtype=torch.int32), [])}]
        )


def test_classes_of_one_name_keep_their_metrics(
    two_images, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    for name in ("test_seg_pan", "test_seg_sem"):
        metadata = MetadataCatalog.get(name)
        del metadata.stuff_classes
        metadata.stuff_classes = ["dog", "dog", "never"]
    semantic, panoptic = SemanticEvaluator("test_seg_sem"), PanopticEvaluator("test_seg_pan")
    for record in two_images:
        ids = torch.from_numpy(read_panoptic_png(record["pan_seg_file_name"]))
        scores = torch.zeros(3, *ids.shape)
        scores[1] = 1
        semantic.process([record], [{"sem_seg": scores}])
        panoptic.process([record], [{"panoptic_seg": (ids, record["segments_info"])}])
    found = semantic.evaluate()["sem_seg"]
    assert found["IoU-dog (0)"] == 0 and found["IoU-dog (1)"] > 0
    assert f"| dog (1) | {found['IoU-dog (1)']:.2f} | {found['ACC-dog (1)']:.2f} |" in re.sub(" +", " ", caplog.text)  # fmt: skip
    assert "OrderedDict" not in caplog.text
    assert panoptic.evaluate()["panoptic_seg"].keys() >= {"PQ-dog (0)", "PQ-dog (1)"}


def test_predictions_of_one_name_in_two_folders_are_kept_apart(two_images, tmp_path: Path) -> None:
    for number, record in enumerate(two_images):
        moved = tmp_path / f"folder{number}" / "same.png"
        moved.parent.mkdir()
        Path(record["pan_seg_file_name"]).rename(moved)
        record["pan_seg_file_name"] = str(moved)
    evaluator = PanopticEvaluator("test_seg_pan", output_dir=tmp_path / "out")
    for record in two_images:
        ids = torch.from_numpy(read_panoptic_png(record["pan_seg_file_name"]))
        evaluator.process([record], [{"panoptic_seg": (ids, record["segments_info"])}])
    evaluator.evaluate()
    for record in two_images:
        name = Path(record["pan_seg_file_name"]).relative_to(tmp_path)
        written = read_panoptic_png(tmp_path / "out" / "panoptic" / name)
        assert (written == read_panoptic_png(record["pan_seg_file_name"])).all()


def test_predicted_label_maps_are_loaded_by_pycocotools(two_images, tmp_path: Path) -> None:
    evaluator = SemanticEvaluator("test_seg_sem", output_dir=str(tmp_path))
    for number, record in enumerate(two_images):
        scores = torch.zeros(len(MetadataCatalog.get("test_seg_sem").stuff_classes), 6, 9)
        scores[number] = 1
        evaluator.process([record], [{"sem_seg": scores}])
    evaluator.evaluate()
    truth = COCO()
    truth.dataset = {
        "images": [{"id": r["image_id"], "height": 6, "width": 9} for r in two_images],
        "annotations": [],
        "categories": [{"id": 0}, {"id": 1}],
    }
    truth.createIndex()
    results = truth.loadRes(str(tmp_path / "sem_seg_predictions.json"))
    found = [results.imgToAnns[record["image_id"]] for record in two_images]
    assert [[a["category_id"] for a in of_image] for of_image in found] == [[0], [1]]
    assert all(results.annToMask(a).all() for of_image in found for a in of_image)
