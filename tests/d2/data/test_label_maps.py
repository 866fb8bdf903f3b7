"""Rules of label maps: what is ignored, how a photo's orientation and its mask's agree, what leaves nothing to learn."""

import struct
import zlib
from pathlib import Path

import detectron2.data.transforms as T
import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image

from comer_d2.d2.data.custom import check_dataset, kind_of, resolve_dataset
from comer_d2.d2.data.mappers import SemanticMapper
from comer_d2.d2.errors import UserError
from comer_d2.d2.evaluation.semantic import SemanticEvaluator
from tests.d2.data.test_segmentation import HEIGHT, NAMES, WIDTH, label_map, write_semantic

TRAIN = "test_seg_own_train"


def rewrite_masks(root: Path, labels: np.ndarray) -> None:
    for path in root.glob("*/masks/*.png"):
        Image.fromarray(labels).save(path)


def problem(cfg) -> str:
    with pytest.raises(UserError) as caught:
        resolve_dataset(cfg)
    return str(caught.value)


@pytest.mark.parametrize("ignore_label", [0, 1, 7])
def test_another_ignored_label(tmp_path: Path, ignore_label: int) -> None:
    """In memory it is 255 as ever: crops, padding, losses, drawing and metrics know no other."""
    cfg = write_semantic(tmp_path)
    in_file = [label for label in range(4) if label != ignore_label]
    table = np.full(256, ignore_label, np.uint8)
    table[:3] = in_file[:3]
    rewrite_masks(tmp_path, table[label_map()])
    cfg.dataset.ignore_label = ignore_label
    resolve_dataset(cfg)
    record = DatasetCatalog.get(TRAIN)[0]
    padded = T.FixedSizeCrop(crop_size=(HEIGHT + 4, WIDTH), pad=True)
    crop = T.RandomCrop_CategoryAreaConstraint("absolute", (64, 64), 0.99, 255)
    mapper = SemanticMapper(True, dataset_name=TRAIN, augmentations=[padded, crop])
    labels = mapper(record)["sem_seg"].numpy()
    assert (labels[:HEIGHT] == label_map()).all() and (labels[HEIGHT:] == 255).all()
    assert (kind_of(TRAIN).truth(record)["sem_seg"] == label_map()).all()
    perfect = torch.nn.functional.one_hot(torch.from_numpy(label_map() % 255).long(), 3)
    evaluator = SemanticEvaluator(TRAIN)
    evaluator.process([record], [{"sem_seg": perfect.permute(2, 0, 1).float()}])
    assert evaluator.evaluate()["sem_seg"]["mIoU"] == 100


def test_255_is_no_label_where_another_is_ignored(tmp_path: Path) -> None:
    cfg = write_semantic(tmp_path)
    cfg.dataset.ignore_label = 0
    assert "label 255 is no class: the classes' labels are 1-3 (0: ignored)" in problem(cfg)
    cfg.dataset.ignore_label = 256
    assert "dataset.ignore_label=256" in problem(cfg)


def test_masks_of_0_and_255(tmp_path: Path) -> None:
    cfg = write_semantic(tmp_path)
    cfg.dataset.class_names = NAMES[:2]
    rewrite_masks(tmp_path, np.where(label_map() == 1, 255, 0).astype(np.uint8))
    message = problem(cfg)
    assert "1 of 2 classes occur" in message and "have to become 0 and 1" in message
    rewrite_masks(tmp_path, np.full((HEIGHT, WIDTH), 255, np.uint8))
    assert "of all pixels 100.0% are ignored" in problem(cfg)


def test_masks_of_0_and_255_with_one_class_name(tmp_path: Path) -> None:
    """All that is not ignored is that class, so any model has mIoU 100."""
    cfg = write_semantic(tmp_path)
    cfg.dataset.class_names = ["car"]
    rewrite_masks(tmp_path, np.where(label_map() == 1, 255, 0).astype(np.uint8))
    message = problem(cfg)
    assert "1 of 1 classes occur" in message and "have to become 0 and 1" in message
    rewrite_masks(tmp_path, np.zeros((HEIGHT, WIDTH), np.uint8))
    assert "class_names needs the rest, too" in problem(cfg)


@pytest.mark.parametrize("labels", [(0, 255), (255, 255)])
def test_validation_masks_that_measure_nothing(tmp_path: Path, labels: tuple[int, int]) -> None:
    cfg = write_semantic(tmp_path)
    for path in (tmp_path / "val" / "masks").glob("*.png"):
        Image.fromarray(np.where(label_map() == 1, *labels).astype(np.uint8)).save(path)
    assert "val: nothing to measure" in problem(cfg)


def test_a_class_without_a_pixel_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = write_semantic(tmp_path)
    cfg.dataset.class_names = [*NAMES, "never"]
    resolve_dataset(cfg)
    assert "1 classes without a pixel, which cannot be learnt (" in caplog.text
    assert "of all pixels are ignored): 'never'" in caplog.text


def test_a_class_twice(tmp_path: Path) -> None:
    cfg = write_semantic(tmp_path)
    cfg.dataset.class_names = ["road", "car", "road"]
    assert "'road' comes twice" in problem(cfg)


def test_two_images_of_one_name(tmp_path: Path) -> None:
    cfg = write_semantic(tmp_path)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "train/images/0.png")
    assert "1 images of the same name (a mask belongs to one image): " in problem(cfg)


def turn_photos(root: Path) -> None:
    """Photos lie on their side in the file, and EXIF data say so."""
    for path in root.glob("*/images/*.jpg"):
        image = Image.open(path).transpose(Image.Transpose.ROTATE_90)
        exif = image.getexif()
        exif[0x0112] = 6
        image.save(path, exif=exif)


def test_masks_belong_to_the_upright_photo(tmp_path: Path) -> None:
    cfg = write_semantic(tmp_path)
    turn_photos(tmp_path)
    resolve_dataset(cfg)
    mapper = SemanticMapper(True, dataset_name=TRAIN, augmentations=[])
    output = mapper(DatasetCatalog.get(TRAIN)[0])
    assert output["image"].shape[1:] == output["sem_seg"].shape == (HEIGHT, WIDTH)
    rewrite_masks(tmp_path, np.ascontiguousarray(np.rot90(label_map())))  # as the file's pixels
    assert "masks that lie on their side while their photo's EXIF data turn it" in problem(cfg)
    for path in tmp_path.glob("*/masks/*.png"):  # unless they say so, too
        mask = Image.open(path)
        exif = mask.getexif()
        exif[0x0112] = 6
        mask.save(path, exif=exif)
    resolve_dataset(cfg)
    assert (mapper(DatasetCatalog.get(TRAIN)[0])["sem_seg"].numpy() == label_map()).all()


def write_grey_png(path: Path, labels: np.ndarray, bits: int) -> None:
    """A grey PNG of `bits` bits a pixel, as Pillow does not write it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    height, width = labels.shape
    places = np.arange(bits - 1, -1, -1)
    rows = np.packbits((labels[:, :, None] >> places & 1).reshape(height, -1), axis=1)
    header = struct.pack(">IIBBBBB", width, height, bits, 0, 0, 0, 0)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + parts)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_masks_of_fewer_bits_are_no_label_maps(tmp_path: Path, bits: int) -> None:
    """A reader stretches them to 0 to 255: the last label of 4 bits, 15, would be the ignored one."""
    cfg = write_semantic(tmp_path)
    labels = np.where(label_map() == 255, 0, label_map())
    for path in tmp_path.glob("*/masks/*"):
        write_grey_png(path, labels, bits)
    if bits < 8:
        assert f"0.png: label maps are images of one channel of 8 bits (mode L or P) whose values are class numbers, this one has {bits} bits a pixel" in problem(cfg)  # fmt: skip
    else:
        resolve_dataset(cfg)


def test_images_of_both_splits_are_said(tmp_path: Path) -> None:
    cfg = write_semantic(tmp_path)
    assert not check_dataset(cfg).notes
    for kind in ("images", "masks"):
        (tmp_path / "train" / kind / "again").symlink_to(tmp_path / "val" / kind)
        cfg.dataset[f"val_{kind}"] = str(tmp_path / "train" / kind / "again")
        cfg.dataset[f"train_{kind}"] = str(tmp_path / "val" / kind)
    (note,) = check_dataset(cfg).notes
    assert note.startswith("2 images are in train and val: what is measured is learnt by heart: ")


def test_masks_are_no_images(tmp_path: Path) -> None:
    cfg = write_semantic(tmp_path)
    cfg.dataset.train_images = cfg.dataset.train_masks
    assert "train: 2 images that are their own mask" in problem(cfg)


def test_palettes_that_disagree_are_said(tmp_path: Path) -> None:
    """As after a conversion from colours that gave each file a palette of its own."""
    cfg = write_semantic(tmp_path)
    red, green, blue = [255, 0, 0], [0, 255, 0], [0, 0, 255]
    rest = [0] * 3 * 253
    for path in sorted((tmp_path / "train" / "masks").iterdir()):
        mask = Image.open(path).convert("L")
        mask.putpalette(red + green + blue + rest)
        mask.save(path)
    assert not check_dataset(cfg).notes
    mask.putpalette(red + blue + blue + rest)
    mask.save(path)
    (note,) = check_dataset(cfg).notes
    assert note.startswith("train: 1 labels are not of one colour in all masks' palettes")
    assert note.endswith(": 1: [(0, 0, 255), (0, 255, 0)]")
