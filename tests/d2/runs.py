"""Runs of train_net.py in tests, and what they wrote."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests/d2/tiny_mask_rcnn.py")


def read_metrics(output: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.json."""
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def start_train_net(
    *arguments: str, launcher: tuple[str, ...] = (), **environment: str
) -> subprocess.Popen:
    """Start train_net.py as a user does, in a session of its own; stderr goes into stdout."""
    return subprocess.Popen(
        [sys.executable, *launcher, str(ROOT / "train_net.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
