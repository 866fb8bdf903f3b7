"""A tiny data set and runs of train_net.py on it, shared by the tests of the engine."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.d2.runs import ROOT, TINY
from tests.d2.tiny_coco import write_tiny_coco


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
    from comer_d2.d2.cli import main

    output = tmp_path_factory.mktemp("whole_run") / "output"
    assert main(["--config-file", TINY, f"train.output_dir={output}"]) == 0
    return output


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The quickstart's 1000 and 150 scenes; the value that DETECTRON2_DATASETS has to have."""
    from comer_d2.d2.data.digits import DigitsSpec, make_digits

    datasets = tmp_path_factory.mktemp("datasets")
    make_digits(datasets / "digits", DigitsSpec(), progress=False)
    return datasets


@pytest.fixture(scope="session")
def learnt_run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of the quickstart's Cascade R-CNN for boxes, which learnt the digits from scratch for a minute."""
    from comer_d2.d2.cli import main

    output = tmp_path_factory.mktemp("learnt") / "run"
    options = ["train.max_iter=250", "train.eval_period=0", "train.report=False"]
    config = str(ROOT / "configs/quickstart/cascade_rcnn_comer_digits.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(digits))
        assert main(["--config-file", config, *options, f"train.output_dir={output}"]) == 0
    return output


def _forget_output_folders() -> None:
    from detectron2.utils.logger import setup_logger

    setup_logger.cache_clear()
    for name in ("detectron2", "fvcore", "comer_d2"):
        logging.getLogger(name).propagate = True  # a run turns it off, and caplog hears nothing
        for handler in logging.getLogger(name).handlers[:]:
            logging.getLogger(name).removeHandler(handler)
            handler.close()


@pytest.fixture(autouse=True)
def _loggers_of_their_own() -> Iterator[None]:
    """Detectron2 adds handlers for every output folder and keeps them: each test would print more."""
    _forget_output_folders()  # those of a run that a fixture of the session or the module made just now
    yield
    _forget_output_folders()


@pytest.fixture
def no_datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A folder without datasets, in which configs are loaded; nothing is written there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    yield
    assert not list(tmp_path.iterdir())
