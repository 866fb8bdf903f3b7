"""Pictures small enough for a page."""

import io

from PIL import Image

from ..results import Result

SIDE = 420  # pixels of the longer side
QUALITY = 80


def jpeg(picture: Image.Image) -> bytes:
    """Encode a picture."""
    buffer = io.BytesIO()
    picture.convert("RGB").save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def drawn(result: Result, task: str) -> bytes:
    """Draw what is in an image, at the page's size."""
    return jpeg(result.draw(task=task, scale=SIDE / max(result.image.shape[:2])))
