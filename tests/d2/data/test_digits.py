"""The digits dataset: what is in it, that it is the same every time, and that its cache mends."""

import json
import logging
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from comer_d2.d2.data import digits
from comer_d2.d2.data.digits import DigitsSpec, compose_scene, make_digits, split_scans

SMALL = DigitsSpec(train_images=6, val_images=3)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_digits(tmp_path_factory.mktemp("data") / "digits", SMALL, progress=False)


def _contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_same_seed_same_files(made: Path, tmp_path: Path) -> None:
    again = make_digits(tmp_path / "again", SMALL, progress=False)
    assert _contents(again) == _contents(made)


def test_another_seed_gives_other_scenes(made: Path, tmp_path: Path) -> None:
    spec = DigitsSpec(train_images=1, val_images=1, seed=1)
    other = make_digits(tmp_path / "other", spec, progress=False)
    name = "train/00001.png"
    assert (other / name).read_bytes() != (made / name).read_bytes()


def test_train_and_validation_use_different_scans() -> None:
    bunch = load_digits()
    train, val = split_scans(bunch.target, 0.2, seed=0)
    assert not set(train) & set(val)
    assert len(train) + len(val) == len(bunch.target)
    for digit in range(10):  # each digit is in both, in the same proportion
        share = (bunch.target[val] == digit).sum() / (bunch.target == digit).sum()
        assert share == pytest.approx(0.2, abs=0.01)


def test_no_scan_is_in_both_splits_even_as_a_copy() -> None:
    bunch = load_digits()
    train, val = split_scans(bunch.target, 0.2, seed=0)
    pictures = {bunch.images[i].tobytes() for i in train}
    assert not any(bunch.images[i].tobytes() in pictures for i in val)


def test_mask_is_the_ink_of_the_enlarged_scan(monkeypatch: pytest.MonkeyPatch) -> None:
    scans, labels = load_digits().images[:1], load_digits().target[:1]
    monkeypatch.setattr(digits, "find_place", lambda *args: (10, 20))
    spec = DigitsSpec(max_digits=1, digit_size=(40, 40))
    image, masks, found = compose_scene(np.random.default_rng(0), scans, labels, spec)
    ink = digits.enlarge_scan(scans[0], 40) >= 0.5
    expected = np.zeros((1, 128, 128), bool)
    expected[0, 10 : 10 + ink.shape[0], 20 : 20 + ink.shape[1]] = ink
    np.testing.assert_array_equal(masks, expected)
    assert found == [labels[0]]
    assert image.shape == (128, 128, 3) and image.dtype == np.uint8
    # Ink and scan agree: averaged back to the scan's own pixels, dark is ink and light is not.
    padded = np.zeros((50, 50))
    ys, xs = np.nonzero(_enlarged(scans[0], 40) >= digits.INK_THRESHOLD)
    padded[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1] = ink
    share = padded[5:45, 5:45].reshape(8, 5, 8, 5).mean((1, 3))
    assert share[scans[0] >= 13].min() > 0.5
    assert share[scans[0] <= 2].max() < 0.5


def _enlarged(scan: np.ndarray, size: int) -> np.ndarray:
    padded = Image.fromarray(np.pad(scan.astype(np.float32), 1))
    return np.asarray(padded.resize((size * 10 // 8,) * 2, Image.Resampling.BICUBIC))


def test_what_a_later_digit_hides_is_not_in_the_earlier_mask(monkeypatch) -> None:
    scans, labels = load_digits().images[:1], load_digits().target[:1]
    places = iter([(10, 20), (20, 30)])
    monkeypatch.setattr(digits, "find_place", lambda *args: next(places, None))
    ink = digits.enlarge_scan(scans[0], 40) >= 0.5
    spec = DigitsSpec(max_digits=4, digit_size=(40, 40))
    rng = np.random.default_rng(0)
    monkeypatch.setattr(digits, "draw_page", lambda rng, side: np.full((side, side, 3), 128.0))
    _, masks, _ = compose_scene(rng, scans, labels, spec)
    below, above = np.zeros((2, 128, 128), bool)
    below[10 : 10 + ink.shape[0], 20 : 20 + ink.shape[1]] = ink
    above[20 : 20 + ink.shape[0], 30 : 30 + ink.shape[1]] = ink
    assert (below & above).any()
    np.testing.assert_array_equal(masks, [below & ~above, above])


def test_masks_do_not_overlap_and_lie_on_contrasting_pixels() -> None:
    bunch = load_digits()
    for seed in range(8):
        rng = np.random.default_rng(seed)
        image, masks, _ = compose_scene(rng, bunch.images, bunch.target, DigitsSpec())
        assert masks.sum(0).max() <= 1
        assert (masks.sum((1, 2)) > 30).all()
        grey = image.astype(float).mean(-1)
        for mask in masks:  # a flat ink: pixels of one digit are alike, within grain and soft edge
            assert grey[mask].std() < 30


def test_json_agrees_with_the_pictures(made: Path) -> None:
    for split, count in (("train", 6), ("val", 3)):
        content = json.loads((made / f"{split}.json").read_text())
        assert [c["name"] for c in content["categories"]] == list("0123456789")
        assert len(content["images"]) == count
        for image in content["images"]:
            picture = Image.open(made / split / image["file_name"])
            assert picture.size == (image["width"], image["height"]) == (128, 128)
        per_image = np.bincount(
            [a["image_id"] for a in content["annotations"]], minlength=count + 1
        )
        assert (per_image[1:] >= 1).all() and (per_image <= 4).all()
        for annotation in content["annotations"]:
            mask = mask_util.decode(annotation["segmentation"])
            assert mask.sum() == annotation["area"]
            ys, xs = np.nonzero(mask)
            x, y, width, height = annotation["bbox"]
            assert (x, y) == (xs.min(), ys.min())
            assert (width, height) == (np.ptp(xs) + 1, np.ptp(ys) + 1)


def test_complete_cache_is_reused(made: Path) -> None:
    before = (made / "manifest.json").stat().st_mtime_ns
    make_digits(made, SMALL, progress=False)
    assert (made / "manifest.json").stat().st_mtime_ns == before


def _remove(path: Path) -> None:
    path.unlink()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [_remove, _truncate])
@pytest.mark.parametrize("name", ["val/00002.png", "train.json"])
def test_damaged_cache_is_made_anew_with_a_message(
    made: Path, caplog: pytest.LogCaptureFixture, damage, name: str
) -> None:
    before = _contents(made)
    damage(made / name)
    with caplog.at_level(logging.WARNING):
        make_digits(made, SMALL, progress=False)
    assert name in caplog.text and "made anew" in caplog.text
    assert _contents(made) == before


def test_other_settings_make_the_cache_anew(made: Path) -> None:
    make_digits(made, DigitsSpec(train_images=2, val_images=1), progress=False)
    assert len(list((made / "train").iterdir())) == 2
    make_digits(made, SMALL, progress=False)
    assert len(list((made / "train").iterdir())) == 6


def test_interrupted_making_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(digits, "_write_split", stop)
    with pytest.raises(KeyboardInterrupt):
        make_digits(tmp_path / "digits", SMALL, progress=False)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


def test_a_folder_of_something_else_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="not a digits dataset"):
        make_digits(tmp_path, SMALL, progress=False)
    assert (tmp_path / "photo.jpg").read_bytes() == b"mine"
