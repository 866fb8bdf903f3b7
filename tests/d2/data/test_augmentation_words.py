"""`dataset.augment` and `dataset.image_size`: what each word does to an image and to its labels."""

from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import pytest
from detectron2.config import instantiate

from comer_d2.d2.data.augmentation import SCALES, label_maps, objects
from comer_d2.d2.engine.config import load_config
from comer_d2.d2.errors import UserError

CUSTOM = sorted((Path(__file__).parents[3] / "configs" / "custom").glob("*.py"))


def outcomes(augmentations: list[T.Augmentation], labelled: bool) -> list[tuple]:
    """(sides, mirrored, recoloured) of 40 drawings of one image: dark, with one light quarter."""
    image = np.zeros((120, 200, 3), np.uint8)
    image[:60, :100] = (200, 60, 60)
    labels = (image[..., 0] > 0).astype(np.uint8)
    found = []
    for seed in range(40):
        np.random.seed(seed)  # noqa: NPY002  Detectron2's transforms draw from it
        prepared = T.AugInput(image.copy(), sem_seg=labels.copy() if labelled else None)
        transforms = T.AugmentationList(augmentations)(prepared)
        mirrored = any(isinstance(t, T.HFlipTransform) for t in transforms.transforms)
        colours = set(map(tuple, prepared.image.reshape(-1, 3).tolist()))
        if labelled:  # they follow the image
            assert prepared.sem_seg.shape == prepared.image.shape[:2]
        found.append((prepared.image.shape[:2], mirrored, colours))
    return found


@pytest.mark.parametrize("augment", SCALES)
def test_objects(augment: str) -> None:
    found = outcomes(objects(100, augment), labelled=False)
    sides = {size for size, _, _ in found}
    assert max(max(size) for size in sides) == 100
    if augment in ("none", "flip"):
        assert sides == {(60, 100)}
    else:
        assert len(sides) > 10
        smallest = min(width for _, width in sides)
        assert (50 <= smallest < 75) if augment == "strong" else 75 <= smallest < 85
    assert {mirrored for _, mirrored, _ in found} == (
        {False} if augment == "none" else {True, False}
    )


@pytest.mark.parametrize("augment", SCALES)
def test_label_maps(augment: str) -> None:
    found = outcomes(label_maps(60, augment), labelled=True)
    sides = {size for size, _, _ in found}
    if augment in ("none", "flip"):
        assert sides == {(60, 100)}
    else:
        assert max(max(size) for size in sides) == 60
        assert min(min(size) for size in sides) >= (30 if augment == "strong" else 45)
    reds = {max(red for red, _, _ in colours) for _, _, colours in found}
    assert (len(reds) > 10) == (augment == "strong")


def test_other_words_and_sizes_are_refused() -> None:
    with pytest.raises(UserError, match=r"dataset\.augment='mosaic': use one of none, flip"):
        objects(640, "mosaic")
    with pytest.raises(UserError, match=r"dataset\.image_size='640'"):
        label_maps("640", "none")


@pytest.mark.parametrize("leaf", CUSTOM, ids=lambda path: path.stem)
def test_single_keys_reach_the_loaders_of_every_custom_config(leaf: Path) -> None:
    cfg = load_config(str(leaf), ["dataset.image_size=96", "dataset.augment=none"])
    for split in ("train", "test"):
        (resize,) = instantiate(cfg.dataloader[split].mapper.augmentations)
        assert resize.short_edge_length == (96, 96)
    assert (cfg.train.epochs, cfg.train.lr_batch_size) == (40, 16)
