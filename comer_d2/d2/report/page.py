"""The report as one self-contained page."""

import base64
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, select_autoescape
from markupsafe import Markup

from ... import __version__
from ...weights.files import write_atomically
from .section import Section

PAGE = "index.html"
# Around the part that goes on after the rest was written.
BEGIN, END = "<!-- training -->", "<!-- end of training -->"


def write_page(
    folder: Path,
    *,
    title: str,
    facts: Sequence[tuple[str, str]],
    headlines: Sequence[tuple[str, str]],
    curves: Sequence[str],
    sections: Sequence[Section],
    batch: Sequence[bytes],
) -> Path:
    """Write index.html; pictures and plots are inside it.

    Args:
        folder: where to; it is made.
        title: of the page.
        facts: names and values about the model and the run.
        headlines: names and values of what matters most.
        curves: SVG elements.
        sections: one a task.
        batch: JPEGs of training images as the network sees them.

    Returns:
        The path of the page.
    """
    text = (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            facts=facts,
            headlines=headlines,
            training=Markup(_training(curves)),
            sections=sections,
            batch=batch,
            version=__version__,
            written=datetime.now().strftime("%Y-%m-%d %H:%M"),
        )
    )
    folder.mkdir(parents=True, exist_ok=True)
    return _write(folder / PAGE, text)


def update_curves(page: Path, curves: Sequence[str]) -> bool:
    """Put other curves into a page, and leave the rest as it is.

    Args:
        page: of `write_page`.
        curves: SVG elements.

    Returns:
        Whether there is such a page.
    """
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    before, begins, rest = text.partition(BEGIN)
    _, ends, after = rest.partition(END)
    if begins and ends:
        _write(page, before + _training(curves) + after)
    return bool(begins and ends)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("comer_d2.d2.report", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["jpeg"] = _data_url
    environment.filters["svg"] = Markup
    return environment


def _training(curves: Sequence[str]) -> str:
    return BEGIN + _environment().get_template("curves.html").render(curves=curves) + END


def _write(page: Path, text: str) -> Path:
    write_atomically(page, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return page


def _data_url(picture: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode()
