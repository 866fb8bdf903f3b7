"""Test-time augmentation and tiles: each view counts, and what comes back is in the image's own pixels."""

from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

from comer_d2 import load
from comer_d2.d2.errors import UserError
from comer_d2.d2.predictor import Predictor
from comer_d2.d2.tiling import predict_tiles, tiled
from tests.d2.untrained import DETECTOR, PANOPTIC, SEMANTIC, write_digits, write_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_digits(tmp_path_factory.mktemp("views"))
    for name, kind in (("detector", DETECTOR), ("panoptic", PANOPTIC), ("semantic", SEMANTIC)):
        write_run(folder / name, folder, kind)
    return folder


@pytest.fixture(scope="module")
def photo(folder: Path) -> np.ndarray:
    return np.array(Image.open(folder / "digits-panoptic" / "val" / "00001.png").convert("RGB"))


def seen_sizes(model: Predictor) -> list[tuple[int, ...]]:
    """Sizes of the images that the backbone gets from now on."""
    sizes: list[tuple[int, ...]] = []
    model.model.backbone.register_forward_pre_hook(
        lambda _, args: sizes.append(tuple(args[0].shape[-2:]))
    )
    return sizes


@pytest.mark.parametrize("name", ["detector", "semantic"])
def test_mirrored_predictions_are_those_of_the_mirrored_image(
    folder: Path, photo: np.ndarray, name: str
) -> None:
    """With flip, an image and its mirror image have mirrored results, which a lone view has not."""
    model = load(folder / name, flip=True)
    right, left = model(photo, threshold=0.0), model(photo[:, ::-1], threshold=0.0)
    if name == "semantic":
        same = (right.label_map == left.label_map[:, ::-1]).mean()
        assert same > 0.999
        return
    assert len(right) == len(left) > 0
    np.testing.assert_allclose(np.sort(right.scores), np.sort(left.scores), atol=1e-4)
    mirrored = left.boxes[:, [2, 1, 0, 3]] * [-1, 1, -1, 1] + [128, 0, 128, 0]
    nearest = np.abs(right.boxes[:, None] - mirrored[None]).max(-1).min(1)
    assert (nearest < 0.5).mean() > 0.9  # suppression may keep the other of two equal boxes
    assert right.masks.shape == (len(right), 128, 128)


def test_every_scale_is_seen(folder: Path, photo: np.ndarray) -> None:
    for name in ("detector", "semantic"):
        model = load(folder / name, scales=(0.5, 1.0, 2.0))
        sizes = seen_sizes(model)
        model(photo)
        assert {(64, 64), (128, 128), (256, 256)} <= set(sizes), name


def test_what_has_no_views(folder: Path) -> None:
    with pytest.raises(UserError, match="not for Mask2Former"):
        load(folder / "panoptic", flip=True)
    with pytest.raises(UserError, match=r"scales=\[0\.0\]"):
        load(folder / "detector", scales=[0.0])


def test_a_label_map_of_tiles(folder: Path, photo: np.ndarray) -> None:
    model = load(folder / "semantic")
    whole = model(photo).label_map
    # One tile is the image itself.
    np.testing.assert_array_equal(predict_tiles(model, photo, tile=128).label_map, whole)
    large = np.tile(photo, (2, 3, 1))
    sizes = seen_sizes(model)
    found = predict_tiles(model, large, tile=128, overlap=0.0).label_map
    np.testing.assert_array_equal(found, np.tile(whole, (2, 3)))
    assert sizes == [(128, 128)] * 6
    assert predict_tiles(model, large[:200, :333], tile=100).label_map.shape == (200, 333)


def test_tiles_out_of_range(folder: Path, photo: np.ndarray) -> None:
    model = load(folder / "panoptic")
    for settings in (
        {"tile": 0},
        {"tile": 6.5},
        {"tile": 64, "overlap": 1.0},
        {"tile": 64, "overlap": -0.1},
    ):
        with pytest.raises(UserError, match="whole pixels from 1"):
            predict_tiles(model, photo, **settings)
    with pytest.raises(UserError, match="this one predicts panoptic, instance, semantic"):
        predict_tiles(model, photo, tile=64)


def test_a_thin_image_does_not_end_the_tiles_of_others(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = folder / "digits-panoptic" / "val" / "00001.png"
    thin = tmp_path / "thin.png"
    Image.new("RGB", (500, 1)).save(thin)
    for name in ("detector", "semantic"):
        model = load(folder / name)
        resize = T.AugmentationList([T.ResizeShortestEdge(48, max_size=96)])
        monkeypatch.setattr(model, "augmentation", resize)
        told: list[UserError] = []
        results = tiled(
            model, [thin, photo], 300, 0.2, on_error=lambda _, error, told=told: told.append(error)
        )
        assert [result.file_name for result in results] == [str(photo)]
        assert str(told[0]).startswith(str(thin)) and "300 x 1 pixels" in str(told[0])


class BrightSquares(torch.nn.Module):
    """Finds the box of all bright pixels of an image, exactly."""

    def forward(self, inputs: list[dict]) -> list[dict]:
        outputs = []
        for record in inputs:
            bright = record["image"].float().mean(0) > 128
            found = Instances(tuple(bright.shape))
            masks = bright[None] if bright.any() else bright.new_zeros(0, *bright.shape)
            boxes = []
            for mask in masks:
                ys, xs = torch.where(mask)
                boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
            found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
            found.pred_masks = masks
            found.scores = torch.full((len(masks),), 0.9)
            found.pred_classes = torch.full((len(masks),), 3)
            outputs.append({"instances": found})
        return outputs


def test_an_object_that_tiles_share_is_one(folder: Path) -> None:
    model = load(folder / "detector")
    model.model = BrightSquares()
    image = np.zeros((150, 260, 3), np.uint8)
    image[60:90, 84:112] = 255  # in the overlap of the first two tiles, and beyond it
    image[100:140, 200:240] = 255
    result = predict_tiles(model, image, tile=100, overlap=0.2)
    boxes = sorted(result.boxes.tolist())
    assert boxes == [[84, 60, 112, 90], [200, 100, 240, 140]]
    assert result.masks.shape == (2, 150, 260)
    assert result.masks.any(0).sum() == 30 * 28 + 40 * 40
    nothing = predict_tiles(model, np.zeros((150, 260, 3), np.uint8), tile=100)
    assert len(nothing) == 0 and nothing.masks.shape == (0, 150, 260)
