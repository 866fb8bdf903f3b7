"""Pictures of label maps and panoptic segments, and of ground truth beside prediction."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.structures import Instances
from PIL import Image, ImageDraw
from tqdm import tqdm

from ..data.segmentation_mappers import PanopticMapper
from ..data.semantic_labels import IGNORE_LABEL, SemanticLabels, read_segments
from ..predictor import Predictor, confident, read_rgb
from .instances import COLORS, draw_instances, draw_label, draw_mask

# Stuff is paler than things, so that a page does not drown what is on it.
STUFF_COLORS = (
    (120, 130, 145),
    (150, 160, 110),
    (110, 150, 150),
    (165, 140, 115),
    (135, 120, 160),
)
SMALLEST_LABELLED = 0.005  # share of the picture


def draw_segments(
    image: np.ndarray,
    segments: np.ndarray,
    info: Sequence[dict[str, Any]],
    class_names: Sequence[str],
    *,
    stuff_classes: Sequence[int] = (),
    scale: float = 1.0,
) -> Image.Image:
    """Draw an image's segments with their names: stuff in its class's colour, things in several.

    Args:
        image: (h, w, 3) uint8, RGB.
        segments: (h, w) int, segment ids; others than those of `info` are left as they are.
        info: `id` and `category_id` of the segments, optionally `score`.
        class_names: name of each class.
        stuff_classes: numbers of the classes that are drawn paler.
        scale: enlargement of the picture; text keeps its size.

    Returns:
        A picture of (round(w * scale), round(h * scale)) pixels.
    """
    height, width = segments.shape
    size = (round(width * scale), round(height * scale))
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    stuff = set(stuff_classes)
    ordered = sorted(info, key=lambda segment: segment["category_id"] not in stuff)
    labels = []
    seen: dict[int, int] = {}
    for segment in ordered:
        mask = segments == segment["id"]
        if not mask.any():
            continue
        label = segment["category_id"]
        if label in stuff:
            color = STUFF_COLORS[label % len(STUFF_COLORS)]
        else:  # several things of one class differ
            color = COLORS[(label + seen.get(label, 0)) % len(COLORS)]
            seen[label] = seen.get(label, 0) + 1
        picture = draw_mask(picture, mask, color)
        if mask.mean() >= SMALLEST_LABELLED:
            score = segment.get("score")
            text = class_names[label] + ("" if score is None else f"  {score:.0%}")
            labels.append((_box(mask, label in stuff) * scale, text, color))
    draw = ImageDraw.Draw(picture)
    taken: list[tuple[float, ...]] = []
    for box, text, color in labels:
        taken.append(draw_label(draw, size, box, text, color, taken))
    return picture


def draw_label_map(
    image: np.ndarray,
    labels: np.ndarray,
    class_names: Sequence[str],
    *,
    stuff_classes: Sequence[int] = (),
    scale: float = 1.0,
) -> Image.Image:
    """Draw a label map; as :func:`draw_segments`, every class being one segment.

    Args:
        image: (h, w, 3) uint8, RGB.
        labels: (h, w) int, classes; 255 is left as it is.
        class_names: name of each class.
        stuff_classes: numbers of the classes that are drawn paler.
        scale: enlargement of the picture.

    Returns:
        The picture.
    """
    classes = [label for label in np.unique(labels).tolist() if label != IGNORE_LABEL]
    info = [{"id": label, "category_id": label} for label in classes]
    return draw_segments(image, labels, info, class_names, stuff_classes=stuff_classes, scale=scale)


def draw_prediction(
    predictor: Predictor,
    image: np.ndarray,
    task: str,
    *,
    stuff_classes: Sequence[int] = (),
    threshold: float = 0.5,
    scale: float = 1.0,
) -> Image.Image:
    """Predict an image and draw what one task found.

    Args:
        predictor: of a segmentation model.
        image: (h, w, 3) uint8, RGB.
        task: "semantic", "instance" or "panoptic".
        stuff_classes: numbers of the classes that are drawn paler.
        threshold: instances below this score are left out.
        scale: enlargement of the picture.

    Returns:
        The picture.
    """
    output = predictor.outputs(image)
    names = predictor.class_names
    if task == "instance":
        found = confident(output["instances"].to("cpu"), threshold)
        return draw_instances(image, found, names, scale=scale)
    if task == "semantic":
        labels = output["sem_seg"].argmax(dim=0).cpu().numpy()
        return draw_label_map(image, labels, names, stuff_classes=stuff_classes, scale=scale)
    ids, info = output["panoptic_seg"]
    return draw_segments(
        image, ids.cpu().numpy(), info, names, stuff_classes=stuff_classes, scale=scale
    )


def draw_truth(
    dataset_name: str,
    record: dict[str, Any],
    image: np.ndarray,
    class_names: Sequence[str],
    task: str,
    *,
    stuff_classes: Sequence[int] = (),
    scale: float = 1.0,
) -> Image.Image:
    """Draw what a record of a semantic or panoptic dataset says; arguments as above."""
    pale = {"stuff_classes": stuff_classes, "scale": scale}
    if task == "semantic":
        return draw_label_map(image, SemanticLabels(dataset_name)(record), class_names, **pale)
    if task == "panoptic":
        return draw_segments(
            image, read_segments(record), record["segments_info"], class_names, **pale
        )
    mapper = PanopticMapper(True, augmentations=[], things_only=True)
    found: Instances = mapper(record)["instances"]
    found.gt_masks = found.gt_masks.tensor
    return draw_instances(image, found, class_names, scale=scale)


def compare_segmentation(
    predictor: Predictor,
    dataset_name: str,
    task: str,
    *,
    count: int,
    stuff_classes: Sequence[int] = (),
    picture_side: int = 256,
    progress: bool = True,
) -> list[tuple[Image.Image, Image.Image]]:
    """Draw the first images of a semantic or panoptic dataset, ground truth and prediction.

    Args:
        predictor: of a model with this task.
        dataset_name: a name in Detectron2's catalog.
        task: "semantic", "instance" or "panoptic".
        count: number of images.
        stuff_classes: numbers of the classes that are drawn paler.
        picture_side: length of the longer side of each picture, pixels.
        progress: show a progress bar.

    Returns:
        (ground truth, prediction) of each image, for :func:`~comer_d2.d2.visualization.instances.picture_sheet`.
    """
    pairs = []
    records = DatasetCatalog.get(dataset_name)[:count]
    for record in tqdm(records, desc="pictures", unit="image", disable=not progress):
        image = read_rgb(record["file_name"])
        pale = {"stuff_classes": stuff_classes, "scale": picture_side / max(image.shape[:2])}
        truth = draw_truth(dataset_name, record, image, predictor.class_names, task, **pale)
        pairs.append((truth, draw_prediction(predictor, image, task, **pale)))
    return pairs


def _box(mask: np.ndarray, is_stuff: bool) -> np.ndarray:
    """Where a label belongs, (x0, y0, x1, y1): around a thing, in the middle of stuff."""
    ys, xs = np.nonzero(mask)
    if not is_stuff:
        return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1], float)
    # The pixel of the mask that is nearest to its centre.
    nearest = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
    x, y = xs[nearest], ys[nearest]
    return np.array([x, y, x + 1, y + 1], float)
