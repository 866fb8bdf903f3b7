"""Tables of figures in docs show what benchmarks/results holds."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


def results(name: str) -> list[dict[str, Any]]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())["rows"]


def check(page: str, first: str, measured: list[float]) -> None:
    """The one table row that begins with a cell has these numbers, to the digits that it shows."""
    lines = (ROOT / "docs" / page).read_text().splitlines()
    (row,) = (line for line in lines if line.startswith(f"| {first} |"))
    shown = re.findall(r"[\d.]+", row.removeprefix(f"| {first} |"))
    assert len(shown) == len(measured), row
    for text, value in zip(shown, measured, strict=True):
        digits = len(text.partition(".")[2])
        assert float(text) == pytest.approx(value, rel=0, abs=0.5001 * 10**-digits), row


def test_the_operator() -> None:
    cases: dict[str, list[float]] = {}
    for row in results("op_cpu_avx512"):
        times = row["milliseconds"]
        figures = [times["grid_sample"], times["comer_d2"], row["vs grid_sample"], row["bf16/fp32"]]
        fused = [row["fused/unfused"]] if row["direction"] == "forward" else []
        cases.setdefault(row["case"], []).extend(figures + fused)
    for case, figures in cases.items():
        check("OP.md", case, figures)


def test_the_token_convolution() -> None:
    cases: dict[str, dict[tuple[str, str], list[float]]] = {}
    for row in results("token_conv_cpu"):
        times = [row["milliseconds"][name] for name in ("conv2d", "comer_d2")]
        key = (row["dtype"].removeprefix("torch."), row["direction"])
        cases.setdefault(row["case"], {})[key] = [*times, row["conv2d / comer_d2"]]
    directions = ("forward", "forward + backward")
    for case, found in cases.items():
        single = [figure for way in directions for figure in found["float32", way]]
        check("OP.md", case, single + [found["bfloat16", way][-1] for way in directions])


def test_the_backbone() -> None:
    for row in results("backbone_cpu"):
        figures = [*row["milliseconds"].values(), *(v for k, v in row.items() if " / " in k)]
        if "kind" in row:
            check("OP.md", f"{row['kind']}, {row['direction']}", figures)
        else:
            height, width = row["image"]
            what = f"ViT-CoMer-{row['size']} {height} x {width}, {row['direction']}"
            check("OP.md", what, figures)


def test_what_a_step_moves() -> None:
    before, now = results("traffic_before"), results("traffic")
    for old, new in zip(before, now, strict=True):
        name, plain = f"ViT-CoMer-{new['size']}", f"plain ViT-{new['size']}"
        figures = []
        for kinds in (old["networks"][name], new["networks"][name], new["networks"][plain]):
            figures.append(sum(kind["kernels"] for kind in kinds.values()))
            figures.append(sum(kind["bytes"] for kind in kinds.values()) / 2**30)
        check("architecture.md", name, figures)


def test_what_a_frozen_vit_saves() -> None:
    rows: dict[str, list[float]] = {}
    for row in results("traffic_batch1"):
        for name in (f"ViT-CoMer-{row['size']}", "its ViT frozen", "and only read"):
            memory, kinds = row["memory"][name], row["networks"][name].values()
            for title, figure in {
                "states, GiB": memory["states"] / 2**30,
                "kept for the backward, GiB": memory["kept"] / 2**30,
                "moved by a step, GiB": sum(kind["bytes"] for kind in kinds) / 2**30,
                "least time of a step, ms": memory["least_seconds"] * 1e3,
            }.items():
                rows.setdefault(title, []).append(figure)
    for title, figures in rows.items():
        check("MODEL_ZOO.md", title, figures)
