"""A tiny data set and runs of train_net.py on it, shared by the tests of the engine."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.d2.tiny_coco import write_tiny_coco

ROOT = Path(__file__).parents[2]
TINY = str(ROOT / "tests/d2/tiny_mask_rcnn.py")


@pytest.fixture(scope="session")
def tiny_coco(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of the data set, which the tiny configs find through TINY_COCO."""
    folder = write_tiny_coco(tmp_path_factory.mktemp("tiny_coco"))
    os.environ["TINY_COCO"] = str(folder)
    yield folder
    del os.environ["TINY_COCO"]


@pytest.fixture(scope="session")
def whole_run(tiny_coco: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a run of tiny_mask_rcnn.py that nothing interrupted: 8 iterations."""
    from comer_d2.d2.engine.main import main

    output = tmp_path_factory.mktemp("whole_run") / "output"
    assert main(["--config-file", TINY, f"train.output_dir={output}"]) == 0
    return output


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


@pytest.fixture(autouse=True)
def _loggers_of_their_own() -> Iterator[None]:
    """Detectron2 adds handlers for every output folder and keeps them: each test would print more."""
    yield
    from detectron2.utils.logger import setup_logger

    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore", "comer_d2"):
        for handler in logging.getLogger(name).handlers[:]:
            logging.getLogger(name).removeHandler(handler)
            handler.close()
