"""Reading image files: one rule for what is refused, and cheap ways to know that a file is damaged."""

import os
import stat
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import Image, ImageOps
from tqdm import tqdm

from ..errors import UserError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
ORIENTATION = 0x0112  # EXIF's tag
MODES_OF_8_BITS = frozenset(("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV", "LAB"))  # fmt: skip
READERS = 8  # threads that look at files; most of the time they wait for a disk
PATIENCE = 2.0  # seconds before a progress bar shows
TAIL = 4096  # bytes at the end of a file that are searched for its end marker

Item, Result = TypeVar("Item"), TypeVar("Result")


class BadImage(UserError):
    """An image file that cannot be read, or not as the 8-bit picture that it should be."""


def read_image(path: str | os.PathLike, image_format: str = "RGB") -> np.ndarray:
    """Read an image file, turned upright where its EXIF data ask for it.

    Args:
        path: of the file.
        image_format: "RGB", "BGR" or another of Detectron2's formats.

    Returns:
        (h, w, 3) uint8.

    Raises:
        BadImage: naming the file, if it is missing, damaged, no image, or has more than 8 bits.
    """
    try:
        _check_kind(path)
        with Image.open(path) as image:
            _check_mode(image, path)
            upright = ImageOps.exif_transpose(image)
            return convert_PIL_to_numpy(upright, image_format)
    except FileNotFoundError as error:
        raise BadImage(f"{os.fspath(path)}: there is no such file") from error
    # Pillow raises these four for damaged files, the last for sizes that would fill the memory.
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error


def check_image(path: str | os.PathLike) -> tuple[int, int]:
    """Look at a file's header and its last bytes; it is decoded only if they leave a doubt.

    Args:
        path: of the file.

    Returns:
        (width, height) of the upright image.

    Raises:
        BadImage: as `read_image` would; a file whose pixels are damaged in the middle is not found.
    """
    try:
        _check_kind(path)
        with Image.open(path) as image:
            _check_mode(image, path)
            width, height = image.size
            if _lies_on_its_side(image):
                width, height = height, width
            whole = _is_whole(image.format, Path(path))
    except FileNotFoundError as error:
        raise BadImage(f"{os.fspath(path)}: there is no such file") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise _unreadable(path, error) from error
    if not whole:
        read_image(path)
    return width, height


def _unreadable(path: str | os.PathLike, error: Exception) -> BadImage:
    hint = ""
    if isinstance(error, Image.DecompressionBombError):
        hint = ": cut it in parts, or, where it is to be trusted, raise PIL.Image.MAX_IMAGE_PIXELS in Python"
    return BadImage(f"{os.fspath(path)}: the image cannot be read ({error}){hint}")


def check_images(
    paths: Sequence[str | os.PathLike], *, decode: bool = False, title: str | None = None
) -> list[tuple[int, int] | BadImage]:
    """`check_image` of many files.

    Args:
        paths: of the files.
        decode: read every file whole.
        title: of a progress bar; None: no bar.

    Returns:
        For each file its upright (width, height), or the error.
    """

    def look(path: str | os.PathLike) -> tuple[int, int] | BadImage:
        try:
            return read_image(path).shape[1::-1] if decode else check_image(path)
        except BadImage as error:
            return error

    return read_all(look, paths, title)


def read_all(
    read: Callable[[Item], Result], items: Sequence[Item], title: str | None
) -> list[Result]:
    """Read many files in threads, under a progress bar where it takes long.

    Args:
        read: what is done with each item; it may return an error, and must not raise one.
        items: what to read.
        title: of the bar; None: no bar.

    Returns:
        What `read` returned, in the order of the items.
    """
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(read, items)
        return list(tqdm(found, title, len(items), delay=PATIENCE, disable=title is None))


def turned_by_exif(path: str | os.PathLike) -> bool:
    """Whether a file's pixels lie on their side, and EXIF data say so."""
    with Image.open(path) as image:
        return _lies_on_its_side(image)


def _lies_on_its_side(image: Image.Image) -> bool:
    if image.format == "PNG" and "exif" not in image.info:
        return False  # getexif() would decode the file to look behind its pixels
    return image.getexif().get(ORIENTATION, 1) >= 5


def _check_kind(path: str | os.PathLike) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise BadImage(f"{os.fspath(path)}: no file, but a folder, a pipe or a device")


def _check_mode(image: Image.Image, path: str | os.PathLike) -> None:
    if image.mode not in MODES_OF_8_BITS:
        raise BadImage(
            f"{os.fspath(path)}: the image has more than 8 bits a channel (Pillow's mode {image.mode}), and "
            "which of its values are black and white is not known: convert it to 8 bits"
        )


def _is_whole(kind: str | None, path: Path) -> bool:
    """Whether the file surely ends where its format says; False: that is not known."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        file.seek(max(0, size - TAIL))
        tail = file.read()
    if kind in ("JPEG", "MPO"):
        return b"\xff\xd9" in tail  # end of image; cameras write more behind it
    if kind == "PNG":
        return b"IEND" in tail
    if kind == "WEBP":  # RIFF: the length of what follows
        return struct.unpack("<I", head[4:8])[0] + 8 <= size
    if kind == "BMP":
        return struct.unpack("<I", head[2:6])[0] <= size
    return False
