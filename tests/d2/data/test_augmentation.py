"""The augmentation of the authors' detection recipe, as configs/common/data/coco_detr.py builds it."""

from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import pytest
from detectron2.config import LazyConfig, instantiate
from detectron2.data.detection_utils import (
    annotations_to_instances,
    transform_instance_annotations,
)
from detectron2.structures import BoxMode

CONFIG = Path(__file__).parents[3] / "configs" / "common" / "data" / "coco_detr.py"
SHORT_EDGES = {480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800}


@pytest.fixture(scope="module")
def augmentation() -> T.AugmentationList:
    dataloader = LazyConfig.load(str(CONFIG), "dataloader")
    return T.AugmentationList(list(instantiate(dataloader.train.mapper.augmentations)))


def _augment(augmentation: T.AugmentationList, seed: int, size: tuple[int, int]):
    np.random.seed(seed)  # noqa: NPY002  Detectron2's transforms draw from the global generator
    image = np.zeros((*size, 3), np.uint8)
    prepared = T.AugInput(image)
    transforms = augmentation(prepared)
    return prepared.image, transforms


def test_sizes_are_the_recipes(augmentation: T.AugmentationList) -> None:
    short_edges, resizes = set(), []
    for seed in range(80):
        image, transforms = _augment(augmentation, seed, (480, 640))
        assert max(image.shape[:2]) <= 1024  # the last crop
        sizes = [
            (t.new_h, t.new_w) for t in transforms.transforms if isinstance(t, T.ResizeTransform)
        ]
        resizes.append(len(sizes))
        assert max(sizes[-1]) <= 1333
        if max(sizes[-1]) < 1332:  # else the long edge decided
            short_edges.add(min(sizes[-1]))
        if len(sizes) == 2:  # the cropped half: 400, 500 or 600 first, then a crop of 384 to 600
            assert min(sizes[0]) in (400, 500, 600)
            crop = next(t for t in transforms.transforms if isinstance(t, T.CropTransform))
            assert 384 <= crop.w <= 600 and 384 <= crop.h <= 600
    assert short_edges <= SHORT_EDGES and len(short_edges) > 6
    assert 0.3 < np.mean([count == 2 for count in resizes]) < 0.7


def test_no_crop_is_larger_than_the_image(augmentation: T.AugmentationList) -> None:
    for seed in range(20):  # a narrow image: its short edge is below the crop's 384
        image, _ = _augment(augmentation, seed, (120, 900))
        assert min(image.shape[:2]) > 0


def test_box_and_polygon_follow_the_image(augmentation: T.AugmentationList) -> None:
    """Augment an image of one white rectangle: its annotation has to land on the white pixels."""
    checked = 0
    for seed in range(40):
        np.random.seed(seed)  # noqa: NPY002
        image = np.zeros((480, 640, 3), np.uint8)
        image[150:330, 200:460] = 255
        prepared = T.AugInput(image)
        transforms = augmentation(prepared)
        size = prepared.image.shape[:2]
        annotation = {
            "bbox": [200, 150, 460, 330],
            "bbox_mode": BoxMode.XYXY_ABS,
            "category_id": 0,
            "segmentation": [[200, 150, 460, 150, 460, 330, 200, 330]],
        }
        moved = transform_instance_annotations(annotation, transforms, size)
        white = prepared.image[..., 0] > 127
        if white.sum() < 100:
            continue
        truth = annotations_to_instances([moved], size, mask_format="bitmask")
        ys, xs = np.nonzero(white)
        expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        np.testing.assert_allclose(truth.gt_boxes.tensor[0].numpy(), expected, atol=2)
        mask = truth.gt_masks.tensor[0].numpy()
        assert (mask & white).sum() > 0.97 * (mask | white).sum()
        checked += 1
    assert checked > 30
