"""Pictures of what is in an image: boxes and masks, segments, label maps.

torchvision draws them. Detectron2's `Visualizer` needs OpenCV, which Detectron2 does not install, and
sizes text and lines for large photographs.
"""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFont
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from torchvision.utils import draw_bounding_boxes, draw_segmentation_masks

from .fonts import font_for

# Distinct on light and on dark pages; a class keeps its colour in every picture.
COLORS = (
    (230, 60, 60),
    (45, 135, 245),
    (45, 175, 75),
    (250, 150, 25),
    (155, 75, 215),
    (20, 180, 190),
    (235, 85, 170),
    (150, 110, 50),
    (120, 165, 20),
    (95, 105, 235),
)
# Stuff is paler than things, so that a page does not drown what is on it.
STUFF_COLORS = (
    (120, 130, 145),
    (150, 160, 110),
    (110, 150, 150),
    (165, 140, 115),
    (135, 120, 160),
)
MASK_OPACITY = 0.5
SMALLEST_LABELLED = 0.005  # share of the picture
Color = tuple[int, int, int]


def draw_instances(
    image: np.ndarray,
    boxes: np.ndarray,
    classes: np.ndarray,
    class_names: Sequence[str],
    *,
    masks: np.ndarray | None = None,
    scores: np.ndarray | None = None,
    scale: float = 1.0,
) -> Image.Image:
    """Draw masks, boxes and labels of one image's instances, the first ones on top.

    Args:
        image: (h, w, 3) uint8, RGB.
        boxes: (n, 4), (x0, y0, x1, y1) in pixels of `image`.
        classes: (n,) int.
        class_names: name of each class.
        masks: (n, h, w) bool.
        scores: (n,), 0 to 1.
        scale: enlargement of the picture.

    Returns:
        A picture of (round(w * scale), round(h * scale)) pixels.
    """
    colors = [COLORS[label % len(COLORS)] for label in classes.tolist()]
    picture = _blend(image, masks if masks is not None else [], colors, scale)
    if not len(boxes):
        return F.to_pil_image(picture)
    corners = torch.as_tensor(boxes, dtype=torch.float32) * scale
    width = max(2, round(max(picture.shape[1:]) / 400))
    # The last drawn lies on top.
    picture = draw_bounding_boxes(picture, corners.flip(0), colors=colors[::-1], width=width)
    shown = scores.tolist() if scores is not None else [None] * len(boxes)
    texts = [_label(class_names[c], s) for c, s in zip(classes.tolist(), shown, strict=True)]
    return F.to_pil_image(_write_labels(picture, corners[:, :2].tolist(), texts, colors))


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
        scale: enlargement of the picture.

    Returns:
        A picture of (round(w * scale), round(h * scale)) pixels.
    """
    stuff = set(stuff_classes)
    masks, colors, labels = [], [], []
    seen: dict[int, int] = {}
    for segment in info:
        mask = segments == segment["id"]
        if not mask.any():
            continue
        label = segment["category_id"]
        if label in stuff:
            color = STUFF_COLORS[label % len(STUFF_COLORS)]
        else:  # several things of one class differ
            color = COLORS[(label + seen.get(label, 0)) % len(COLORS)]
            seen[label] = seen.get(label, 0) + 1
        masks.append(mask)
        colors.append(color)
        if mask.mean() >= SMALLEST_LABELLED:
            x, y = _centre(mask) if label in stuff else _top_left(mask)
            text = _label(class_names[label], segment.get("score"))
            labels.append(((x * scale, y * scale), text, color))
    picture = _blend(image, masks, colors, scale)
    if labels:
        picture = _write_labels(picture, *zip(*labels, strict=True))
    return F.to_pil_image(picture)


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
        labels: (h, w) int, classes; numbers of no class are left as they are.
        class_names: name of each class.
        stuff_classes: numbers of the classes that are drawn paler.
        scale: enlargement of the picture.

    Returns:
        The picture.
    """
    classes = [label for label in np.unique(labels).tolist() if 0 <= label < len(class_names)]
    info = [{"id": label, "category_id": label} for label in classes]
    return draw_segments(image, labels, info, class_names, stuff_classes=stuff_classes, scale=scale)


def _label(name: str, score: float | None) -> str:
    return name if score is None else f"{name} {score:.0%}"


def _blend(
    image: np.ndarray, masks: Sequence[np.ndarray], colors: Sequence[Color], scale: float
) -> Tensor:
    """The image under its masks, enlarged: (3, H, W) uint8."""
    picture = torch.tensor(image).permute(2, 0, 1)
    if len(masks):
        # torchvision blackens what two masks share: the first one keeps it.
        free = np.ones(image.shape[:2], bool)
        visible = np.empty((len(masks), *free.shape), bool)
        for own, mask in zip(visible, masks, strict=True):
            own[...] = mask & free
            free &= ~mask
        picture = draw_segmentation_masks(
            picture, torch.from_numpy(visible), alpha=MASK_OPACITY, colors=list(colors)
        )
    if scale == 1:
        return picture
    size = [max(1, round(side * scale)) for side in picture.shape[1:]]
    return F.resize(picture, size, interpolation=F.InterpolationMode.BICUBIC, antialias=True)


def _write_labels(
    picture: Tensor,
    places: Sequence[tuple[float, float]],
    texts: Sequence[str],
    colors: Sequence[Color],
) -> Tensor:
    """Write labels above places, moved inside where they would leave the picture."""
    size = max(13, round(max(picture.shape[1:]) / 55))
    labels = []
    for (x, y), text, color in zip(places, texts, colors, strict=True):
        font = font_for([text])
        _, _, width, height = ImageFont.truetype(font, size).getbbox(text)
        x = max(0, min(x, picture.shape[2] - width - 3))
        y = max(0, min(y - height - 3, picture.shape[1] - height - 3))
        labels.append((font, [x, y, x, y], text, color))
    for font, group in groupby(reversed(labels), key=itemgetter(0)):
        _, corners, shown, fills = zip(*group, strict=True)
        picture = draw_bounding_boxes(
            picture,
            torch.tensor(corners),
            labels=list(shown),
            colors=list(fills),
            label_colors="white",
            fill_labels=True,
            width=0,
            font=font,
            font_size=size,
        )
    return picture


def _top_left(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of the corner of the mask's box."""
    return int(mask.any(0).argmax()), int(mask.any(1).argmax())


def _centre(mask: np.ndarray) -> tuple[int, int]:
    """(x, y) of the mask's pixel that is nearest to its centre."""
    ys, xs = np.nonzero(mask)
    nearest = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
    return int(xs[nearest]), int(ys[nearest])
