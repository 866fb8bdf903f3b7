"""The detectors' steps of `make gpu`, at tiny sizes on the CPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import gpu
import gpu_parts


@pytest.mark.slow
@pytest.mark.parametrize("name", gpu_parts.CONFIGS)
def test_steps_on_generated_images(name: str) -> None:
    result = gpu.run_part(name, "cpu")
    assert result["status"] == "ran", result
    (row,) = result["rows"]
    assert row["images"] == 1
    assert 0 < row["without waiting for data, s"] <= row["step, s"]
