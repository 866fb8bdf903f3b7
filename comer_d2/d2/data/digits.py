"""A small COCO-format instance dataset made of real scanned digits.

scikit-learn ships 1797 scans of handwritten digits (8x8 pixels, 17 grey levels; the UCI set
"Optical Recognition of Handwritten Digits", DOI 10.24432/C50P49). Each is enlarged, inked in some
colour and composed with others on a textured page. Train and validation use different scans.
"""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
from iopath.common.file_io import file_lock
from PIL import Image
from sklearn.datasets import load_digits
from tqdm import tqdm

logger = logging.getLogger(__name__)

CLASS_NAMES = tuple("0123456789")
MAX_INK = 16  # a scan's darkest level
INK_THRESHOLD = 7.0  # enlarged scan values from here on belong to the digit
INK_SOFTNESS = 3.0  # scan levels over which the drawn edge fades
MAX_COVERED = 0.15  # share of a digit's ink that digits above it may hide
RECIPE = 1  # raise it when the drawing below changes: cached datasets are then made anew


@dataclass(frozen=True)
class DigitsSpec:
    """What a digits dataset consists of; two equal specs give the same files.

    Args:
        train_images: number of training scenes.
        val_images: number of validation scenes.
        image_size: side of a scene, pixels.
        digit_size: smallest and largest enlarged scan, pixels.
        max_digits: a scene has 1 to this many digits.
        val_share: share of each digit's scans kept for validation, in (0, 1).
        seed: of the split and of every scene.
    """

    train_images: int = 1000
    val_images: int = 150
    image_size: int = 128
    digit_size: tuple[int, int] = (28, 52)
    max_digits: int = 4
    val_share: float = 0.2
    seed: int = 0


def split_scans(labels: np.ndarray, val_share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Divide scans into training and validation, digit by digit.

    Args:
        labels: (n,) int, the digit of each scan.
        val_share: share of each digit's scans for validation.
        seed: of the shuffle.

    Returns:
        Two sorted, disjoint arrays of indices into `labels`: train, validation.
    """
    rng = np.random.default_rng(seed)
    train, val = [], []
    for digit in np.unique(labels):
        order = rng.permutation(np.flatnonzero(labels == digit))
        count = round(len(order) * val_share)
        val.append(order[:count])
        train.append(order[count:])
    return np.sort(np.concatenate(train)), np.sort(np.concatenate(val))


def enlarge_scan(scan: np.ndarray, size: int) -> np.ndarray:
    """Enlarge one scan to coverage by ink, cropped to its ink.

    Args:
        scan: (8, 8), values 0 to 16.
        size: side the 8 scan pixels are enlarged to, pixels.

    Returns:
        (h, w) float32 in [0, 1], the ink's opacity; h, w at most 1.25 x `size`. A pixel belongs
        to the digit's mask where the opacity is at least 0.5.
    """
    # One empty scan pixel all around, so that strokes that touch the border end round.
    padded = np.pad(scan.astype(np.float32), 1)
    side = round(size * 10 / 8)
    values = np.asarray(Image.fromarray(padded).resize((side, side), Image.Resampling.BICUBIC))
    opacity = np.clip((values - INK_THRESHOLD) / INK_SOFTNESS + 0.5, 0, 1)
    ys, xs = np.nonzero(opacity >= 0.5)
    return opacity[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1]


def draw_page(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw a background: a colour gradient with smooth stains, grain and sometimes ruled lines.

    Args:
        rng: source of every random choice.
        size: side of the page, pixels.

    Returns:
        (size, size, 3) float32, RGB, 0 to 255.
    """
    angle = rng.uniform(0, 2 * np.pi)
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32) / size - 0.5
    ramp = (xs * np.cos(angle) + ys * np.sin(angle) + 0.71) / 1.42
    light = rng.uniform(25, 230)
    first, second = np.clip(light + rng.uniform(-45, 45, (2, 3)), 0, 255)
    page = first + ramp[..., None] * (second - first)

    stains = rng.normal(0, 1, (6, 6)).astype(np.float32)
    stains = np.asarray(Image.fromarray(stains).resize((size, size), Image.Resampling.BICUBIC))
    page += stains[..., None] * rng.uniform(2, 14)
    if rng.random() < 0.3:
        period = int(rng.integers(9, 22))
        rows = (np.arange(size) + rng.integers(period)) % period == 0
        page[rows] += rng.choice([-1, 1]) * rng.uniform(10, 30)
    page += rng.normal(0, rng.uniform(1, 6), (size, size, 1))
    return np.clip(page, 0, 255).astype(np.float32)


def choose_ink(rng: np.random.Generator, under: np.ndarray) -> np.ndarray:
    """Choose an ink colour that stands out from what is under the digit.

    Args:
        rng: source of every random choice.
        under: (n, 3) float, the page's colours under the digit, 0 to 255.

    Returns:
        (3,) float, RGB.
    """
    grey = under.mean()
    if grey + rng.uniform(-40, 40) > 128:
        level = rng.uniform(0, max(grey - 80, 1))
    else:
        level = rng.uniform(min(grey + 80, 254), 255)
    return np.clip(level + rng.uniform(-60, 60, 3), 0, 255)


def compose_scene(
    rng: np.random.Generator, scans: np.ndarray, labels: np.ndarray, spec: DigitsSpec
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Compose one scene; later digits lie on top of earlier ones.

    Args:
        rng: source of every random choice.
        scans: (n, 8, 8), values 0 to 16, the scans to choose from.
        labels: (n,) int, their digits.
        spec: sizes and counts.

    Returns:
        image (s, s, 3) uint8 RGB; masks (k, s, s) bool, the ink of each digit that is not hidden
        by another; the k digits.
    """
    side = spec.image_size
    page = draw_page(rng, side)
    masks = np.zeros((0, side, side), bool)
    digits: list[int] = []
    for _ in range(int(rng.integers(1, spec.max_digits + 1))):
        chosen = int(rng.integers(len(scans)))
        size = int(rng.integers(spec.digit_size[0], spec.digit_size[1] + 1))
        opacity = enlarge_scan(scans[chosen], size)
        height, width = opacity.shape
        place = find_place(rng, masks, opacity >= 0.5)
        if place is None:  # the scene is full
            continue
        y, x = place
        area = np.s_[y : y + height, x : x + width]
        ink = choose_ink(rng, page[area][opacity >= 0.5])
        page[area] += opacity[..., None] * (ink - page[area])
        mask = np.zeros((side, side), bool)
        mask[area] = opacity >= 0.5
        masks = np.concatenate([masks & ~mask, mask[None]])
        digits.append(int(labels[chosen]))
    image = np.clip(page + rng.normal(0, 2, page.shape), 0, 255).astype(np.uint8)
    return image, masks, digits


def find_place(
    rng: np.random.Generator, masks: np.ndarray, ink: np.ndarray
) -> tuple[int, int] | None:
    """Find where a digit can lie without hiding too much of those already there.

    Args:
        rng: source of every random choice.
        masks: (k, s, s) bool, visible ink so far.
        ink: (h, w) bool, the new digit.

    Returns:
        (y, x) of its top left corner, or None after 30 failed attempts.
    """
    side = masks.shape[-1]
    before = masks.sum((1, 2))
    for _ in range(30):
        y = int(rng.integers(side - ink.shape[0] + 1))
        x = int(rng.integers(side - ink.shape[1] + 1))
        window = masks[:, y : y + ink.shape[0], x : x + ink.shape[1]]
        if ((window & ink).sum((1, 2)) <= MAX_COVERED * before).all():
            return y, x
    return None


def make_digits(
    root: str | os.PathLike, spec: DigitsSpec | None = None, *, progress: bool = True
) -> Path:
    """Make the dataset, or reuse the one that is there when it is complete and undamaged.

    Args:
        root: folder of the dataset; it gets train.json, val.json, train/, val/ and manifest.json.
        spec: what to make; the default is `DigitsSpec()`.
        progress: show a progress bar.

    Returns:
        `root` as a path.

    Raises:
        FileExistsError: `root` exists and is not a digits dataset, so it is not replaced.
    """
    root, spec = Path(root), spec or DigitsSpec()
    root.parent.mkdir(parents=True, exist_ok=True)
    # Two runs that start together: the second waits, then finds the first one's files.
    with file_lock(str(root)):
        damage = find_damage(root, spec)
        if damage is None:
            logger.info("Digits dataset in %s is complete, reusing it", root)
            return root
        if root.exists():
            if any(root.iterdir()) and not (root / "manifest.json").is_file():
                raise FileExistsError(
                    f"{root} is not a digits dataset (no manifest.json) and is left as it is; "
                    "remove it or choose another folder"
                )
            logger.warning("Digits dataset in %s is made anew: %s", root, damage)
        building = Path(tempfile.mkdtemp(dir=root.parent, prefix=f".{root.name}-"))
        try:
            _write_dataset(building, spec, progress)
            building.chmod(0o755)
            if root.exists():
                shutil.rmtree(root)
            os.replace(building, root)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    return root


def find_damage(root: Path, spec: DigitsSpec) -> str | None:
    """Say what is wrong with the dataset in `root`, or return None when it is exactly `spec`.

    Args:
        root: folder of the dataset.
        spec: what it has to contain.

    Returns:
        One line, or None. Every file is read and compared with the manifest's checksum (36 MB: 0.1 s).
    """
    manifest_file = root / "manifest.json"
    if not manifest_file.is_file():
        return "there is no manifest.json"
    try:
        manifest = json.loads(manifest_file.read_text())
        files, made_as = manifest["files"], manifest["spec"]
    except (ValueError, KeyError, TypeError) as error:
        return f"manifest.json cannot be read ({error})"
    if made_as != _describe(spec):
        return "it was made with other settings"
    for name, digest in files.items():
        try:
            found = _digest((root / name).read_bytes())
        except OSError:
            return f"{name} is missing"
        if found != digest:
            return f"{name} is damaged"
    return None


def _write_dataset(folder: Path, spec: DigitsSpec, progress: bool) -> None:
    bunch = load_digits()
    train, val = split_scans(bunch.target, spec.val_share, spec.seed)
    bar = tqdm(
        total=spec.train_images + spec.val_images,
        desc="digit scenes",
        unit="image",
        disable=not progress,
    )
    with bar:
        for stream, (split, chosen, count) in enumerate(
            (("train", train, spec.train_images), ("val", val, spec.val_images))
        ):
            (folder / split).mkdir()
            dataset = _write_split(
                folder / split,
                np.random.default_rng([spec.seed, stream]),
                bunch.images[chosen],
                bunch.target[chosen],
                spec,
                count,
                bar.update,
            )
            (folder / f"{split}.json").write_text(json.dumps(dataset))
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    digests = {path.relative_to(folder).as_posix(): _digest(path.read_bytes()) for path in files}
    manifest = {"spec": _describe(spec), "files": digests}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))


def _write_split(
    folder: Path,
    rng: np.random.Generator,
    scans: np.ndarray,
    labels: np.ndarray,
    spec: DigitsSpec,
    count: int,
    advance: Callable[[], object],
) -> dict:
    images, annotations = [], []
    for image_id in range(1, count + 1):
        image, masks, digits = compose_scene(rng, scans, labels, spec)
        name = f"{image_id:05d}.png"
        Image.fromarray(image).save(folder / name)
        side = spec.image_size
        images.append({"id": image_id, "file_name": name, "width": side, "height": side})
        for mask, digit in zip(masks, digits, strict=True):
            # RLE, not polygons: 0, 6, 8 and 9 have holes.
            rle = mask_util.encode(np.asfortranarray(mask.astype(np.uint8)))
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": digit + 1,
                    "bbox": mask_util.toBbox(rle).tolist(),
                    "area": int(mask_util.area(rle)),
                    "iscrowd": 0,
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                }
            )
        advance()
    categories = [{"id": digit + 1, "name": name} for digit, name in enumerate(CLASS_NAMES)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _describe(spec: DigitsSpec) -> dict:
    """The spec as it reads back from JSON (tuples become lists)."""
    return json.loads(json.dumps({"recipe": RECIPE, **asdict(spec)}))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
