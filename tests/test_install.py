"""The decisions of tools/install.py, and what a Python without Detectron2 is told."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# By path: Detectron2 installs a package of its own called `tools`.
_spec = importlib.util.spec_from_file_location("comer_d2_install", ROOT / "tools" / "install.py")
install = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(install)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    (tmp_path / "csrc" / "cpu").mkdir(parents=True)
    (tmp_path / "setup.py").write_text("setup()")
    (tmp_path / "csrc" / "cpu" / "kernel.cpp").write_text("int x;")
    return tmp_path


def test_torch_and_torchvision_come_together_or_not_at_all() -> None:
    assert install.torch_to_install(["torch", "torchvision"]) == []
    assert install.torch_to_install(["torch"]) == ["torch", "torchvision"]
    assert install.torch_to_install([]) == ["torch", "torchvision"]


def test_installed_versions_are_kept() -> None:
    assert (
        install.constraints({"torch": "2.11.0+cpu", "torchvision": None}) == "torch==2.11.0+cpu\n"
    )


def test_detectron2_is_pinned_to_a_commit() -> None:
    location, _, commit = install.DETECTRON2.partition("@")
    assert location == "git+https://github.com/facebookresearch/detectron2.git"
    assert len(commit) == 40


def test_fingerprint_follows_sources_and_torch(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    before = install.fingerprint(checkout, "2.15.0")
    assert install.fingerprint(checkout, "2.15.0") == before
    assert install.fingerprint(checkout, "2.16.0") != before
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    assert install.fingerprint(checkout, "2.15.0") != before
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST")
    (checkout / "README.md").write_text("not a source")
    assert install.fingerprint(checkout, "2.15.0") == before
    (checkout / "csrc" / "cpu" / "kernel.cpp").rename(checkout / "csrc" / "kernel.cpp")
    assert install.fingerprint(checkout, "2.15.0") != before


@pytest.mark.parametrize(
    ("stamp", "editable_here", "has_binary", "reason"),
    [
        ({"torch": "a", "sources": "b"}, True, True, None),
        ({"torch": "old", "sources": "b"}, True, True, "changed: torch"),
        ({"torch": "a"}, True, True, "changed: sources"),
        (None, True, True, "no record of the last build"),
        ({"torch": "a", "sources": "b"}, True, False, "the compiled extension is missing"),
        ({"torch": "a", "sources": "b"}, False, True, "not installed from this folder yet"),
    ],
)
def test_builds_only_for_a_reason(
    stamp: dict[str, str] | None, editable_here: bool, has_binary: bool, reason: str | None
) -> None:
    now = {"torch": "a", "sources": "b"}
    told = install.reason_to_build(stamp, now, editable_here=editable_here, has_binary=has_binary)
    assert told == reason


def test_an_editable_install_of_another_folder_does_not_count(checkout: Path) -> None:
    def record(folder: Path, editable: bool) -> str:
        return json.dumps({"url": folder.as_uri(), "dir_info": {"editable": editable}})

    assert install.is_editable_from(checkout, record(checkout, True))
    assert not install.is_editable_from(checkout, record(checkout, False))
    assert not install.is_editable_from(checkout, record(checkout.parent, True))
    assert not install.is_editable_from(checkout, None)


def test_the_telling_line_of_a_failure_is_found() -> None:
    output = (
        "Collecting x\nfatal: unable to access 'https://...': Could not resolve host\nhint: y\n"
    )
    assert install.why_failed(output).startswith("fatal: unable to access")
    assert install.why_failed("one\nlast\n") == "last"
    assert install.why_failed("") == "no output"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """main() with steps that only say that they ran, and a Detectron2 that cannot be had."""
    ran: list[str] = []

    def detectron2() -> str:
        ran.append("detectron2")
        raise install.StepError("Detectron2 could not be installed (no network)")

    def core() -> str:
        ran.append("core")
        return "done"

    monkeypatch.setattr(install, "STEPS", (("d2", detectron2, False), ("core", core, True)))
    monkeypatch.setattr(install, "ROOT", tmp_path)
    monkeypatch.setattr(install, "LOG", tmp_path / "build" / "install.log")
    monkeypatch.delenv("COMER_D2_REQUIRE_DETECTRON2", raising=False)
    return ran


def test_without_detectron2_the_core_is_still_installed(
    steps: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert install.main() == 0
    assert steps == ["detectron2", "core"]
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == "Detectron2 could not be installed (no network)"


@pytest.mark.usefixtures("steps")
def test_without_a_required_detectron2_install_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMER_D2_REQUIRE_DETECTRON2", "1")
    assert install.main() == 1


def test_a_failing_core_step_stops_and_shows_the_log(
    steps: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken() -> str:
        install.run([sys.executable, "-c", "raise SystemExit('error: no such wheel')"])
        return "done"

    monkeypatch.setattr(install, "STEPS", (("core", broken, True), *install.STEPS))
    assert install.main() == 1
    assert steps == []
    *tail, told = capsys.readouterr().err.strip().splitlines()
    assert "error: no such wheel" in tail
    assert told.startswith("make install: core: error: no such wheel. Whole log: ")


def test_tests_of_detectron2_skip_for_the_one_named_reason(tmp_path: Path) -> None:
    """Detectron2 shadowed by a package that does not import: tests/d2 is skipped, or fails where required."""
    stub = tmp_path / "detectron2" / "__init__.py"
    stub.parent.mkdir()
    stub.write_text("raise ImportError('shadowed for this test')")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "--collect-only", "tests/d2"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "COMER_D2_REQUIRE_DETECTRON2": "0"}
    told = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    reasons = {line.split(": ", 1)[1] for line in told.stdout.splitlines() if "SKIPPED" in line}
    assert len(reasons) == 1, told.stdout
    assert (
        "Detectron2 does not import (shadowed for this test): run `make install`" in reasons.pop()
    )

    environment["COMER_D2_REQUIRE_DETECTRON2"] = "1"
    failed = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert failed.returncode not in (0, 5), failed.stdout
    assert "Detectron2 does not import" in failed.stdout


def test_no_test_is_skipped_for_a_package_of_the_test_extra() -> None:
    """Installed they are, by `make install`; a package that is gone is to fail its tests."""
    word = "importor" + "skip"
    assert [str(p) for p in (ROOT / "tests").rglob("*.py") if word in p.read_text()] == []
