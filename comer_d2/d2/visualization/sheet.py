"""A sheet of pictures, ground truth beside prediction, and how a picture is written."""

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ...weights.files import write_atomically

SHEET_COLOR = (255, 255, 255)
TEXT_COLOR = (30, 34, 40)
SOFT_TEXT_COLOR = (105, 112, 122)
LINE_COLOR = (215, 219, 224)


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
    draw.text((margin, 18), title, fill=TEXT_COLOR, font=ImageFont.load_default(26))
    draw.text((margin, 54), subtitle, fill=SOFT_TEXT_COLOR, font=ImageFont.load_default(16))
    for column in range(columns):
        left = margin + column * pair_step
        for text, x in (("ground truth", left), ("prediction", left + width + gap)):
            draw.text(
                (x + width / 2, header + heading / 2),
                text,
                TEXT_COLOR,
                ImageFont.load_default(16),
                anchor="mm",
            )
        draw.line((left, header + 1, left + pair_width, header + 1), fill=LINE_COLOR)
    for index, pair in enumerate(pairs):
        left = margin + index % columns * pair_step
        top = header + heading + index // columns * (height + margin // 2)
        for picture, x in zip(pair, (left, left + width + gap)):
            sheet.paste(picture, (x, top))
    return sheet


def save_picture(picture: Image.Image, path: str | os.PathLike) -> Path:
    """Write a picture, whole or not at all; its name's ending chooses the format.

    Args:
        picture: what to write.
        path: where; missing folders are made.

    Returns:
        `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = Image.registered_extensions()[path.suffix.lower()]
    write_atomically(path, lambda temporary: picture.save(temporary, format=kind, quality=90))
    return path
