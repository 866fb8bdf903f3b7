"""Fonts that have the letters of a text."""

import logging
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font

DEFAULT = str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
# No marks of their own: controls and formats (joiners), spaces, and variation selectors.
UNSEEN = {"Cc", "Cf", "Zs", "Zl", "Zp"}
VARIATION_SELECTORS = range(0xFE00, 0xFE10)
COLORED = 1 << 14  # FreeType's FT_FACE_FLAG_COLOR
PLACEHOLDERS = "LastResort"  # of matplotlib: a box with a script's name for every letter there is

logger = logging.getLogger(__name__)
_told: set[str] = set()


def font_for(texts: Iterable[str]) -> str:
    """The font that is here and has the most of some texts' letters.

    What no font here has is drawn as boxes; the log says so, once for each letter.

    Args:
        texts: what is to be written with it.

    Returns:
        Path of a font file: DejaVu Sans, unless another one has more of the letters.
    """
    letters = frozenset(filter(_is_seen, "".join(texts)))
    font = _best(letters)
    new = letters - _letters(font) - _told
    if new:
        _told.update(new)
        logger.warning(
            "no font of this machine has %s: boxes are drawn in their place; install a font of that script",
            " ".join(sorted(new)),
        )
    return font


@lru_cache(maxsize=256)
def _best(letters: frozenset[str]) -> str:
    missing = letters - _letters(DEFAULT)
    if not missing:
        return DEFAULT
    # Upright ones of usual weight before others with the same letters.
    installed = sorted(
        font_manager.fontManager.ttflist,
        key=lambda f: (f.style != "normal", f.weight not in (400, "normal", "regular"), f.fname),
    )
    return max(
        [DEFAULT, *(font.fname for font in installed if PLACEHOLDERS not in font.fname)],
        key=lambda path: len(letters & _letters(path)),
    )


@cache
def _letters(path: str) -> frozenset[str]:
    """What a font can draw in one colour, at any size."""
    try:
        face = FT2Font(path)
    except (OSError, RuntimeError):  # removed since matplotlib listed it, or damaged
        return frozenset()
    flags = getattr(face.face_flags, "value", face.face_flags)
    drawn = face.scalable and not flags & COLORED
    return frozenset(map(chr, face.get_charmap())) if drawn else frozenset()


def _is_seen(letter: str) -> bool:
    return unicodedata.category(letter) not in UNSEEN and ord(letter) not in VARIATION_SELECTORS
