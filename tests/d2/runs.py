"""Runs of train_net.py in tests, and what they wrote."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests/d2/tiny_mask_rcnn.py")
LIMIT = 600  # seconds after which a process hangs: it says nothing of its speed


def read_metrics(output: Path) -> list[dict[str, Any]]:
    """The lines of a run's metrics.json."""
    return [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]


def quickstart_tool() -> ModuleType:
    """tools/quickstart.py as a module: by path, for Detectron2 installs a package that is called tools, too."""
    path = ROOT / "tools" / "quickstart.py"
    spec = importlib.util.spec_from_file_location("quickstart", path)
    module = importlib.util.module_from_spec(spec)
    # What a command sets for its process would hold for all later tests: one thread, a path.
    with mock.patch.dict(os.environ), mock.patch.object(sys, "path", sys.path[:]):
        spec.loader.exec_module(module)
    return module


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
