"""Plots of the report, as SVG."""

import io
import re
import warnings
from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

STYLE = {
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",  # text stays text: smaller, and it can be searched
    "legend.frameon": False,
}
MOST_POINTS = 400  # of a line
MOST_NAMED = 12  # lines with a name of their own
MOST_LETTERS = 32  # of a name


def lines(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    title: str,
    x: str,
    y: str = "",
    log: bool = False,
    limits: tuple[float, float] | None = None,
) -> str:
    """Lines in one plot.

    Args:
        series: name -> (x values, y values).
        title: over the plot.
        x: what the x values are.
        y: what the y values are.
        log: whether the y axis is logarithmic.
        limits: of the y axis.

    Returns:
        An SVG element.
    """
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.subplots()
        for number, (name, (xs, ys)) in enumerate(series.items()):
            step = max(1, len(xs) // MOST_POINTS)
            shown = (
                {"label": _literal(name)} if number < MOST_NAMED else {"color": "0.75", "zorder": 0}
            )
            marker = "o" if len(xs) < 8 else None
            axes.plot(xs[::step], ys[::step], marker=marker, markersize=3, linewidth=1.4, **shown)
        axes.set(title=title, xlabel=x, ylabel=y)
        if all(isinstance(value, int) for xs, _ in series.values() for value in xs):
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1))
        if log:
            axes.set_yscale("log")
        if limits:
            axes.set_ylim(*limits)
        if len(series) > 1:
            # Given by hand: by itself it leaves out names that begin with _.
            named = axes.lines[:MOST_NAMED]
            axes.legend(handles=named, fontsize=7, ncols=2 if len(series) > 6 else 1)
        return _svg(figure)


def confusion(table: np.ndarray, names: Sequence[str], missed: str, extra: str) -> str:
    """A confusion matrix with its counts.

    Args:
        table: (K + 1, K + 1) counts, truth by prediction; the last row and column are no class.
        names: of the K classes.
        missed: name of the last column.
        extra: name of the last row.

    Returns:
        An SVG element.
    """
    size = len(names) + 1
    with mpl.rc_context({**STYLE, "axes.grid": False}):
        side = min(9.0, 2.2 + 0.36 * size)
        figure = Figure(figsize=(side + 0.6, side), layout="constrained")
        axes = figure.subplots()
        share = table / np.maximum(table.sum(1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        shown = [_literal(name) for name in names]
        axes.set_xticks(range(size), [*shown, missed], rotation=90, fontsize=7)
        axes.set_yticks(range(size), [*shown, extra], fontsize=7)
        axes.set(xlabel="predicted", ylabel="true", title="Confusion (colour: share of the row)")
        for i, j in np.argwhere(table > 0).tolist():
            color = "white" if share[i, j] > 0.5 else "0.2"
            text = f"{table[i, j]:,.0f}" if table[i, j] < 1e5 else f"{share[i, j]:.0%}"
            axes.text(j, i, text, ha="center", va="center", fontsize=6, color=color)
        return _svg(figure)


def _literal(name: str) -> str:
    """A name that leaves room for the plot, and that matplotlib does not read as mathematics."""
    if len(name) > MOST_LETTERS:
        name = name[: MOST_LETTERS - 1] + "…"
    return name.replace("$", r"\$")


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # Of characters that matplotlib's font lacks: it is the browser that draws them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    svg = text[text.index("<svg") :]
    # The page decides how large it is shown; the view box keeps the shape.
    return re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1).replace("<svg ", '<svg role="img" ', 1)  # fmt: skip
