"""Pictures of instances: one image, or a sheet of ground truth beside prediction.

Pillow alone draws them. Detectron2's `Visualizer` needs OpenCV, which Detectron2 does not install,
and sizes text and lines for large photographs.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Instances
from PIL import Image, ImageDraw, ImageFilter, ImageFont

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
MASK_OPACITY = 0.45
SHEET_COLOR = (255, 255, 255)
TEXT_COLOR = (30, 34, 40)
SOFT_TEXT_COLOR = (105, 112, 122)


def draw_instances(
    image: np.ndarray, instances: Instances, class_names: Sequence[str], *, scale: float = 1.0
) -> Image.Image:
    """Draw masks, boxes and labels of one image's instances.

    Args:
        image: (h, w, 3) uint8, RGB.
        instances: predictions (`pred_boxes`, `pred_classes`, `scores`, optionally `pred_masks`) or
            ground truth (`gt_boxes`, `gt_classes`, optionally `gt_masks`), on the CPU and in the
            coordinates of `image`. Masks are (n, h, w) bool.
        class_names: name of each class.
        scale: enlargement of the picture; text and lines keep their size.

    Returns:
        A picture of (round(w * scale), round(h * scale)) pixels.
    """
    height, width = image.shape[:2]
    size = (round(width * scale), round(height * scale))
    picture = Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)
    kind = "pred" if instances.has("pred_boxes") else "gt"
    boxes = instances.get(f"{kind}_boxes").tensor.numpy() * scale
    classes = instances.get(f"{kind}_classes").tolist()
    masks = instances.get(f"{kind}_masks") if instances.has(f"{kind}_masks") else []
    for mask, label in zip(masks, classes):
        picture = draw_mask(picture, torch.as_tensor(mask).numpy(), COLORS[label % len(COLORS)])

    draw = ImageDraw.Draw(picture)
    for box, label in zip(boxes, classes):
        draw.rectangle(box.tolist(), outline=COLORS[label % len(COLORS)], width=2)
    scores = instances.scores.tolist() if instances.has("scores") else [None] * len(classes)
    taken: list[tuple[float, ...]] = []
    for box, label, score in zip(boxes, classes, scores):
        text = class_names[label] if score is None else f"{class_names[label]}  {score:.0%}"
        taken.append(draw_label(draw, size, box, text, COLORS[label % len(COLORS)], taken))
    return picture


def picture_sheet(
    pairs: Sequence[tuple[Image.Image, Image.Image]],
    *,
    title: str,
    subtitle: str = "",
    columns: int = 3,
) -> Image.Image:
    """Lay out ground truth beside prediction, pair by pair.

    Args:
        pairs: (ground truth, prediction) pictures; all are drawn at the size of the largest.
        title: the headline.
        subtitle: a smaller line under it.
        columns: pairs in a row.

    Returns:
        The sheet.
    """
    gap, margin, header, heading = 6, 24, 84, 28
    width = max(picture.width for pair in pairs for picture in pair)
    height = max(picture.height for pair in pairs for picture in pair)
    columns = min(columns, len(pairs))
    rows = -(-len(pairs) // columns)
    pair_width, pair_step = 2 * width + gap, 2 * width + gap + margin
    sheet = Image.new(
        "RGB",
        (
            columns * pair_step + margin,
            header + heading + rows * (height + margin // 2) + margin // 2,
        ),
        SHEET_COLOR,
    )
    draw = ImageDraw.Draw(sheet)
    draw.text((margin, 18), title, fill=TEXT_COLOR, font=_font(26))
    draw.text((margin, 54), subtitle, fill=SOFT_TEXT_COLOR, font=_font(16))
    for column in range(columns):
        left = margin + column * pair_step
        for text, x in (("ground truth", left), ("prediction", left + width + gap)):
            draw.text(
                (x + width / 2, header + heading / 2), text, TEXT_COLOR, _font(16), anchor="mm"
            )
        draw.line((left, header + 1, left + pair_width, header + 1), fill=(215, 219, 224))
    for index, pair in enumerate(pairs):
        left = margin + index % columns * pair_step
        top = header + heading + index // columns * (height + margin // 2)
        for picture, x in zip(pair, (left, left + width + gap)):
            sheet.paste(picture, (x, top))
    return sheet


def save_picture(picture: Image.Image, path: str | os.PathLike) -> Path:
    """Write a picture atomically; its name's ending chooses the format.

    Args:
        picture: what to write.
        path: where; missing folders are made.

    Returns:
        `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    try:
        picture.save(part)
        os.chmod(part, 0o644)
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)
    return path


def draw_mask(picture: Image.Image, mask: np.ndarray, color: tuple[int, int, int]) -> Image.Image:
    """Lay `color` over the mask, with a solid line along its edge."""
    inside = Image.fromarray(mask.astype(np.uint8) * 255)
    inside = inside.resize(picture.size, Image.Resampling.BICUBIC).point(lambda v: 255 * (v > 127))
    edge = np.asarray(inside) != np.asarray(inside.filter(ImageFilter.MinFilter(3)))
    opacity = np.asarray(inside).astype(np.float32) / 255 * MASK_OPACITY
    opacity[edge] = 1.0
    blended = Image.fromarray((opacity * 255).astype(np.uint8))
    return Image.composite(Image.new("RGB", picture.size, color), picture, blended)


def draw_label(
    draw: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: np.ndarray,
    text: str,
    color: tuple[int, int, int],
    taken: Sequence[tuple[float, ...]],
) -> tuple[float, ...]:
    """Write a label at its box, where no other label is if possible; returns its rectangle."""
    font = _font(15)
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 8, bottom - top + 7
    corners = [
        (box[0], box[1] - height),
        (box[0], box[3]),
        (box[2] - width, box[1] - height),
        (box[2] - width, box[3]),
        (box[0], box[1]),
    ]
    places = []
    for x, y in corners:
        x = min(max(x, 0), size[0] - width)
        y = min(max(y, 0), size[1] - height)
        places.append((x, y, x + width, y + height))
    place = min(places, key=lambda p: sum(_overlap(p, other) for other in taken))
    draw.rectangle(place, fill=color)
    draw.text((place[0] + 4 - left, place[1] + 3 - top), text, fill=(255, 255, 255), font=font)
    return place


def _overlap(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0) * max(height, 0)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
