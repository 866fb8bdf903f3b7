"""Prediction from a LazyConfig and a checkpoint, and the pictures of it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import instantiate
from detectron2.structures import Boxes, Instances
from omegaconf import DictConfig
from PIL import Image

from comer_d2.d2.data.custom import resolve_dataset
from comer_d2.d2.data.digits import DigitsSpec, make_digits
from comer_d2.d2.engine.config import load_config
from comer_d2.d2.errors import UserError
from comer_d2.d2.predictor import Predictor, compare_with_ground_truth, confident
from comer_d2.d2.visualization.instances import COLORS, draw_instances, picture_sheet, save_picture

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs" / "quickstart" / "mask_rcnn_comer_digits.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny digits dataset and a checkpoint of an untrained model that sees objects everywhere."""
    folder = tmp_path_factory.mktemp("predictor")
    make_digits(folder / "digits", DigitsSpec(train_images=2, val_images=3), progress=False)
    torch.manual_seed(0)
    cfg = _config(folder)
    resolve_dataset(cfg)
    model = instantiate(cfg.model)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    return folder


def _config(folder: Path) -> DictConfig:
    digits = folder / "digits"
    return load_config(
        str(CONFIG),
        [
            f"dataset.train_json={digits}/train.json",
            f"dataset.train_images={digits}/train",
            f"dataset.val_json={digits}/val.json",
            f"dataset.val_images={digits}/val",
            "model.roi_heads.box_predictor.test_score_thresh=0.0",
        ],
    )


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor(_config(folder), folder / "model.pth")


def test_file_and_array_give_the_same(predictor: Predictor, folder: Path) -> None:
    path = folder / "digits" / "val" / "00001.png"
    from_file = predictor(path)
    from_array = predictor(np.asarray(Image.open(path)))
    assert len(from_file) > 0
    assert torch.equal(from_file.pred_boxes.tensor, from_array.pred_boxes.tensor)
    assert torch.equal(from_file.pred_masks, from_array.pred_masks)
    assert from_file.pred_masks.shape == (len(from_file), 128, 128)
    assert (from_file.scores.diff() <= 0).all()
    assert predictor.class_names == list("0123456789")


def test_agrees_with_the_model_on_the_test_loader(predictor: Predictor, folder: Path) -> None:
    cfg = _config(folder)
    resolve_dataset(cfg)
    inputs = next(iter(instantiate(cfg.dataloader.test)))
    with torch.no_grad():
        expected = predictor.model(inputs)[0]["instances"]
    found = predictor(inputs[0]["file_name"])
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)


def test_bgr_model_gets_bgr(folder: Path) -> None:
    cfg = _config(folder)
    cfg.dataloader.test.mapper.image_format = "BGR"
    predictor = Predictor(cfg, folder / "model.pth")
    seen = []
    predictor.model.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]["image"]))
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 0] = 200  # red
    predictor(image)
    assert seen[0][:, 0, 0].tolist() == [0, 0, 200]


def test_image_is_resized_as_the_test_data_and_boxes_come_back(folder: Path) -> None:
    import detectron2.data.transforms as T
    from detectron2.config import LazyCall as L

    cfg = _config(folder)
    cfg.dataloader.test.mapper.augmentations = [
        L(T.ResizeShortestEdge)(short_edge_length=128, max_size=256)
    ]
    predictor = Predictor(cfg, folder / "model.pth")
    seen = []
    predictor.model.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]["image"]))
    found = predictor(np.zeros((64, 100, 3), np.uint8))
    assert tuple(seen[0].shape) == (3, 128, 200)
    assert found.image_size == (64, 100)


def test_saved_config_needs_no_data(folder: Path, tmp_path: Path) -> None:
    """A run's config.yaml, on a machine without the dataset."""
    from detectron2.config import LazyConfig

    cfg = _config(folder)
    resolve_dataset(cfg)
    for key in ("train_json", "train_images", "val_json", "val_images"):
        cfg.dataset[key] = "/not/here"
    LazyConfig.save(cfg, str(tmp_path / "config.yaml"))
    predictor = Predictor(load_config(str(tmp_path / "config.yaml")), folder / "model.pth")
    assert predictor.class_names == list("0123456789")


def test_missing_checkpoint(folder: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.pth"):
        Predictor(_config(folder), "nowhere.pth")


def test_missing_and_broken_image(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    for name in ("nowhere.png", "text.png"):
        with pytest.raises(UserError, match=rf"{name}' cannot be read"):
            predictor(tmp_path / name)


def test_checkpoint_of_another_model(folder: Path, tmp_path: Path) -> None:
    weights = torch.load(folder / "model.pth", weights_only=True)["model"]
    weights.pop("roi_heads.box_predictor.cls_score.weight")
    torch.save({"model": weights}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="cls_score"):
        Predictor(_config(folder), tmp_path / "other.pth")


def test_comparison_shows_the_truth(predictor: Predictor, folder: Path) -> None:
    pairs = compare_with_ground_truth(
        predictor, "digits_val", count=2, picture_side=256, progress=False
    )
    assert len(pairs) == 2
    assert all(picture.size == (256, 256) for pair in pairs for picture in pair)
    content = json.loads((folder / "digits" / "val.json").read_text())
    present = {a["category_id"] - 1 for a in content["annotations"] if a["image_id"] == 1}
    pixels = {tuple(p) for p in np.asarray(pairs[0][0]).reshape(-1, 3).tolist()}
    for digit in present:
        assert COLORS[digit] in pixels


def _one_instance(kind: str) -> Instances:
    instances = Instances((40, 60))
    mask = torch.zeros(1, 40, 60, dtype=torch.bool)
    mask[0, 10:20, 20:40] = True
    box = Boxes(torch.tensor([[20.0, 10.0, 40.0, 20.0]]))
    if kind == "pred":
        instances.pred_boxes, instances.pred_masks = box, mask
        instances.pred_classes, instances.scores = torch.tensor([0]), torch.tensor([0.9])
    else:
        instances.gt_boxes, instances.gt_masks = box, mask
        instances.gt_classes = torch.tensor([0])
    return instances


@pytest.mark.parametrize("kind", ["pred", "gt"])
def test_mask_and_box_are_drawn_where_they_are(kind: str) -> None:
    image = np.full((40, 60, 3), 255, np.uint8)
    picture = np.asarray(draw_instances(image, _one_instance(kind), ["cat"], scale=4))
    assert picture.shape == (160, 240, 3)
    tinted = (picture[60, 120].astype(int) - COLORS[0]) / (255 - np.array(COLORS[0]))
    assert tinted == pytest.approx([0.55] * 3, abs=0.05)  # inside: 45% of the colour
    assert tuple(picture[40, 120]) == COLORS[0]  # the box's upper edge
    assert (picture[:, :60] == 255).all()


def test_only_confident_predictions_are_kept() -> None:
    instances = _one_instance("pred")
    assert len(confident(instances, 0.9)) == 1 and len(confident(instances, 0.95)) == 0


def test_no_instances_leave_the_image_alone() -> None:
    image = np.full((20, 20, 3), 77, np.uint8)
    picture = draw_instances(image, _one_instance("pred")[:0], ["cat"])
    np.testing.assert_array_equal(np.asarray(picture), image)


def test_sheet_holds_every_pair() -> None:
    colors = [(i * 20 + 5, 0, 0) for i in range(10)]
    pictures = [Image.new("RGB", (50, 40), color) for color in colors]
    pairs = list(zip(pictures[::2], pictures[1::2]))
    sheet = picture_sheet(pairs, title="t", subtitle="s", columns=2)
    found, counts = np.unique(np.asarray(sheet).reshape(-1, 3), axis=0, return_counts=True)
    by_color = {tuple(c): n for c, n in zip(found.tolist(), counts.tolist())}
    assert all(by_color[color] == 50 * 40 for color in colors)


def test_picture_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch) -> None:
    picture = Image.new("RGB", (8, 8))
    path = save_picture(picture, tmp_path / "new" / "a.png")
    assert Image.open(path).size == (8, 8)

    def fail(self, target, **kwargs) -> None:
        Path(target).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        save_picture(picture, path)
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]
    assert Image.open(path).size == (8, 8)


def test_predict_command(folder: Path, tmp_path: Path) -> None:
    digits = folder / "digits"
    command = [sys.executable, ROOT / "tools" / "predict.py", "--config-file", CONFIG]
    command += ["--checkpoint", folder / "model.pth", "--output", tmp_path / "out", "--json"]
    command += ["--threshold", "0", digits / "val" / "00001.png"]
    for key in ("train", "val"):
        command += ["--override", f"dataset.{key}_json={digits}/{key}.json"]
        command += ["--override", f"dataset.{key}_images={digits}/{key}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert Image.open(tmp_path / "out" / "00001.png").size == (640, 640)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert results and set(results[0]) >= {"bbox", "category_id", "score", "segmentation"}
    assert all(r["category"] == str(r["category_id"]) for r in results)
