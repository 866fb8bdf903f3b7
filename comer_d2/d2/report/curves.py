"""What a run's metrics.json says of its training."""

import json
from collections.abc import Mapping
from pathlib import Path

from . import plots

HIDDEN = ("time", "eta_seconds", "data_time", "max_mem_mb", "images_per_second", "evaluation_seconds", "iteration", "rank_data_time")  # fmt: skip
HEADLINES = ("AP", "AP50", "mIoU", "PQ", "SQ", "RQ", "fwIoU", "pACC")


def curves(metrics: Path) -> list[str]:
    """Plots of losses, learning rate and metrics.

    Args:
        metrics: a run's metrics.json.

    Returns:
        SVG elements; none where the file is missing or has no line.
    """
    series = read_series(metrics)
    losses = {name: s for name, s in series.items() if "loss" in name}
    rates = {name: s for name, s in series.items() if name.rpartition("/")[2].startswith("lr")}
    measured = {
        name: s
        for name, s in series.items()
        if "/" in name and name.rpartition("/")[2] in HEADLINES
    }
    # A decoder's losses of every layer are one line too many each.
    main = {name: s for name, s in losses.items() if name == "total_loss"}
    terms = {n: s for n, s in losses.items() if n != "total_loss" and not n[-1].isdigit()}
    groups = (
        (main, "Loss", False), (terms, "Terms of the loss", True), (measured, "Measured on validation data", False),
        (rates, "Learning rate", False), ({n: s for n, s in series.items() if n == "grad_norm"}, "Norm of the gradient", True),
    )  # fmt: skip
    return [
        plots.lines(found, title=title, x="iteration", log=log) for found, title, log in groups if found
    ]  # fmt: skip


def read_series(metrics: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Iterations and values of every metric.

    Args:
        metrics: a run's metrics.json, a JSON object a line.

    Returns:
        Name -> (iterations, values); values that are no finite numbers are left out.
    """
    found: dict[str, tuple[list[int], list[float]]] = {}
    if not metrics.is_file():
        return found
    for line in metrics.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:  # the last line of a run that was killed
            continue
        if not isinstance(entry, Mapping) or not isinstance(entry.get("iteration"), int):
            continue
        for name, value in entry.items():
            if name in HIDDEN or not isinstance(value, (int, float)) or value - value != 0:
                continue
            xs, ys = found.setdefault(name, ([], []))
            xs.append(entry["iteration"])
            ys.append(float(value))
    return found
