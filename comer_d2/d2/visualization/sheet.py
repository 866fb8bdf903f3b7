"""A sheet of pictures, such as ground truth beside prediction, and how a picture is written."""

import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ...weights.files import write_atomically
from ..errors import UserError
from .fonts import font_for

SHEET_COLOR = (255, 255, 255)
TEXT_COLOR = (30, 34, 40)
SOFT_TEXT_COLOR = (105, 112, 122)
LINE_COLOR = (215, 219, 224)


def picture_sheet(
    groups: Sequence[tuple[Image.Image, ...]],
    *,
    title: str,
    subtitle: str = "",
    headings: Sequence[str] = ("ground truth", "prediction"),
    columns: int = 3,
) -> Image.Image:
    """Lay out pictures that belong together side by side, group by group.

    Args:
        groups: pictures, as many in each as there are headings; each has the place of the largest.
        title: the headline.
        subtitle: a smaller line under it.
        headings: what stands over the pictures of a group.
        columns: groups in a row.

    Returns:
        The sheet.
    """
    gap, margin, header, heading = 6, 24, 84, 28
    width = max(picture.width for group in groups for picture in group)
    height = max(picture.height for group in groups for picture in group)
    columns = min(columns, len(groups))
    rows = -(-len(groups) // columns)
    step = width + gap
    group_width = len(headings) * step - gap
    group_step = group_width + margin
    sheet = Image.new(
        "RGB",
        (
            columns * group_step + margin,
            header + heading + rows * (height + margin // 2) + margin // 2,
        ),
        SHEET_COLOR,
    )
    draw = ImageDraw.Draw(sheet)
    font = font_for([title, subtitle, *headings])
    draw.text((margin, 18), title, fill=TEXT_COLOR, font=ImageFont.truetype(font, 24))
    draw.text((margin, 54), subtitle, fill=SOFT_TEXT_COLOR, font=ImageFont.truetype(font, 15))
    for column in range(columns):
        left = margin + column * group_step
        for number, text in enumerate(headings):
            draw.text(
                (left + number * step + width / 2, header + heading / 2),
                text,
                TEXT_COLOR,
                ImageFont.truetype(font, 15),
                anchor="mm",
            )
        draw.line((left, header + 1, left + group_width, header + 1), fill=LINE_COLOR)
    for index, group in enumerate(groups):
        left = margin + index % columns * group_step
        top = header + heading + index // columns * (height + margin // 2)
        for number, picture in enumerate(group):
            sheet.paste(picture, (left + number * step, top))
    return sheet


def picture_kind(path: str | os.PathLike) -> str:
    """Pillow's name of the format that a picture's ending stands for.

    Raises:
        UserError: it stands for none.
    """
    kind = Image.registered_extensions().get(Path(path).suffix.lower())
    if kind is None or kind not in Image.SAVE:
        raise UserError(f"'{path}': the name of a picture ends in .png, .jpg or another format's")
    return kind


def save_picture(picture: Image.Image, path: str | os.PathLike) -> Path:
    """Write a picture, whole or not at all; its name's ending chooses the format.

    Args:
        picture: what to write.
        path: where; missing folders are made.

    Returns:
        `path`.

    Raises:
        UserError: the ending is no picture's.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = picture_kind(path)
    write_atomically(path, lambda temporary: picture.save(temporary, format=kind, quality=90))
    return path
