"""What the benchmarks of whole networks share: rivals that take turns, and how figures are written."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import op


@contextmanager
def plain_layers(*, attention: bool = True) -> Iterator[None]:
    """PyTorch's own linear layers and, with `attention`, `grid_sample` while the context is open."""
    from comer_d2.layers import deform_attn, linear
    from comer_d2.ops import ms_deform_attn_fused_reference

    compiled, chosen = deform_attn.ms_deform_attn_fused, linear.by_convolution
    linear.by_convolution = lambda x, weight: False
    if attention:
        deform_attn.ms_deform_attn_fused = ms_deform_attn_fused_reference
    try:
        yield
    finally:
        deform_attn.ms_deform_attn_fused, linear.by_convolution = compiled, chosen


def take_turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, device: str
) -> dict[str, list[float]]:
    """Milliseconds of each call in each round; a first round, which warms up, is not counted."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            elapsed = op.timed(call, device)
            if number:
                times[name].append(elapsed)
    return times


def medians(times: Mapping[str, list[float]]) -> dict[str, float]:
    """The median of each."""
    return {name: statistics.median(values) for name, values in times.items()}


def median_ratio(a: list[float], b: list[float]) -> float:
    """The median of the rounds' ratios."""
    return statistics.median([x / y for x, y in zip(a, b, strict=True)])


def parser(description: str) -> argparse.ArgumentParser:
    """Rounds, threads, malloc and the file to write."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--rounds", type=int, default=5, help="counted rounds (%(default)s)")
    result.add_argument("--threads", type=int, default=2, help="(%(default)s)")
    result.add_argument("--malloc", choices=["fault-free", "default"], default="fault-free")
    result.add_argument("--json", type=Path, help="also write the figures here")
    return result


def start(options: argparse.Namespace, device: str) -> dict[str, Any]:
    """Set up the process (it may start anew), and print and return what the machine is."""
    if device == "cpu" and options.malloc == "fault-free":
        op.restart_without_page_faults()
    import torch

    torch.set_num_threads(options.threads)
    machine = op.machine(device)
    print("\n".join(f"{key}: {value}" for key, value in machine.items()))
    return machine


def write(options: argparse.Namespace, machine: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """Write the figures where --json asks for them."""
    if options.json:
        result = {"command": " ".join(["python", *sys.argv]), "machine": machine, "rows": rows}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
