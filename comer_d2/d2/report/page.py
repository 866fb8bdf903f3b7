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
    environment = Environment(
        loader=PackageLoader("comer_d2.d2.report", "."),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["jpeg"] = _data_url
    environment.filters["svg"] = Markup
    text = environment.get_template("page.html").render(
        title=title,
        facts=facts,
        headlines=headlines,
        curves=curves,
        sections=sections,
        batch=batch,
        version=__version__,
        written=datetime.now().strftime("%Y-%m-%d %H:%M"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / PAGE, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return folder / PAGE


def _data_url(picture: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode()
