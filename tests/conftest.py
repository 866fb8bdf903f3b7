"""What every test shares: one rule for skipping, the reference numbers, threads and seeds."""

from __future__ import annotations

import importlib
import os
import random
import signal
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch starts its threads

import numpy as np
import pytest
import torch

TESTS = Path(__file__).parent
ON_ANY_DEVICE = [TESTS / name for name in ("layers", "network", "heads")]
# A shell's background jobs ignore Ctrl-C, and so would the runs that tests interrupt.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# The tensors here are tiny: more threads only wait for each other.
torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        help="where the tests of layers, network and heads make their tensors: cpu, or cuda, which leaves out all others",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Make tensors without a device of their own where --device says, also those made at import."""
    if (device := config.getoption("--device")) != "cpu":
        torch.set_default_device(device)
        torch.backends.cudnn.allow_tf32 = False  # float32 tests mean float32


def _why_no_detectron2() -> str | None:
    try:
        importlib.import_module("detectron2")
    except ImportError as error:
        return f"Detectron2 does not import ({error}): run `make install`, or see docs/INSTALL.md"
    return None


WHY_NO_DETECTRON2 = _why_no_detectron2()


class _ModuleWithoutDetectron2(pytest.Module):
    """Stands in for a module of tests/d2, which could not even be imported."""

    def collect(self) -> list[pytest.Item]:
        if os.environ.get("COMER_D2_REQUIRE_DETECTRON2") == "1":
            raise self.CollectError(f"{WHY_NO_DETECTRON2} (COMER_D2_REQUIRE_DETECTRON2=1)")
        pytest.skip(WHY_NO_DETECTRON2, allow_module_level=True)


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    """Skip tests/d2, and nothing else, where Detectron2 does not import."""
    if WHY_NO_DETECTRON2 and module_path.is_relative_to(TESTS / "d2"):
        return _ModuleWithoutDetectron2.from_parent(parent, path=module_path)
    return None


def golden_folders() -> list[Path]:
    folders = [TESTS / "data"]
    if given := os.environ.get("COMER_D2_GOLDEN"):
        folders.append(Path(given))
        if not folders[-1].is_dir():
            raise pytest.UsageError(
                f"COMER_D2_GOLDEN: {given} is not a folder; unset or correct it"
            )
    return folders


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test once per reference file: those of tests/data, and of the folder COMER_D2_GOLDEN if set.

    ``@pytest.mark.golden("det_*.safetensors")`` chooses the files; a test takes each as ``golden_path``. A file in the
    folder stands in for the one of the same name in tests/data.
    """
    if "golden_path" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("golden")
    if marker is None:
        raise pytest.UsageError(
            f"{metafunc.definition.nodeid}: golden_path needs @pytest.mark.golden(...)"
        )
    found = {path.name: path for folder in golden_folders() for path in folder.glob(marker.args[0])}
    names = sorted(found)
    metafunc.parametrize("golden_path", [found[name] for name in names], ids=names)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, rather than report as skipped: tests whose reference files are not at hand, or not of --device."""
    on_cpu = config.getoption("--device") == "cpu"

    def wanted(item: pytest.Item) -> bool:
        params = getattr(getattr(item, "callspec", None), "params", {})
        has_file = isinstance(params.get("golden_path", Path()), Path)
        on_device = any(map(item.path.is_relative_to, ON_ANY_DEVICE))
        return has_file and (on_cpu or (on_device and not item.get_closest_marker("cpu")))

    kept = [item for item in items if wanted(item)]
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@pytest.fixture(autouse=True)
def _same_draws_every_time() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  Detectron2's transforms draw from it
    torch.manual_seed(0)
