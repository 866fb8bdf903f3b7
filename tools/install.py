#!/usr/bin/env python3
"""Prepare the running Python for comer_d2; `make install` runs this.

What is already there is used: torch, torchvision and a Detectron2 that imports are never changed. A second run takes
seconds. Standard library only, because nothing else need be installed yet. pip decides where packages come from.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOG = ROOT / "build" / "install.log"
STAMP = ROOT / "build" / "install-stamp.json"

TORCH = ("torch", "torchvision")
# setuptools: editable installs need 64 or newer, Detectron2's model_zoo needs pkg_resources, which 81 dropped.
BUILD_TOOLS = ("setuptools>=64,<81", "wheel", "ninja")
# The commit every test was run with. Detectron2 makes no releases; its guide installs from the repository.
DETECTRON2 = "git+https://github.com/facebookresearch/detectron2.git@02b5c4e295e990042a714712c21dc79b731e8833"
READY = "Ready: `make quickstart` trains a detector on this CPU, `make test` runs every test."


class StepError(Exception):
    """A step failed; the text is what to tell the user."""


# ---- decisions (tests/test_install.py reads them as a specification) ----------------------------------------------


def installed_version(name: str) -> str | None:
    """Version of an installed distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def torch_to_install(present: Sequence[str]) -> list[str]:
    """torch and torchvision are installed together or not at all, so that pip picks a matching pair."""
    return [] if set(TORCH) <= set(present) else list(TORCH)


def constraints(versions: dict[str, str | None]) -> str:
    """A pip constraints file that keeps the installed versions as they are."""
    return "".join(f"{name}=={version}\n" for name, version in versions.items() if version)


def fingerprint(root: Path, torch_version: str | None) -> dict[str, str]:
    """Everything the compiled extension depends on: sources, Python, torch and the build's own settings."""
    digest = hashlib.sha256()
    sources = [root / "setup.py", *sorted((root / "csrc").rglob("*"))]
    for path in sources:
        if path.is_file():
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    settings = ("CC", "CXX", "CUDA_HOME", "FORCE_CUDA", "TORCH_CUDA_ARCH_LIST")
    return {
        "sources": digest.hexdigest(),
        "python": f"{sys.prefix} {sys.version}",
        "torch": str(torch_version),
        "nvcc": str(shutil.which("nvcc")),
        **{name: os.environ.get(name, "") for name in settings},
    }


def reason_to_build(
    stamp: dict[str, str] | None, now: dict[str, str], *, editable_here: bool, has_binary: bool
) -> str | None:
    """Why the package must be installed (and its extension built) again, or None when all is as it was left."""
    if not editable_here:
        return "not installed from this folder yet"
    if not has_binary:
        return "the compiled extension is missing"
    if stamp is None:
        return "no record of the last build"
    changed = [name for name in now if stamp.get(name) != now[name]]
    return f"changed: {', '.join(changed)}" if changed else None


def is_editable_from(root: Path, direct_url: str | None) -> bool:
    """Whether a distribution's direct_url.json (PEP 610) says: editable, from this folder."""
    if not direct_url:
        return False
    record = json.loads(direct_url)
    return record.get("url") == root.as_uri() and record.get("dir_info", {}).get("editable", False)


def why_failed(output: str) -> str:
    """The most telling line of a command's output: the first that says fatal or error, else the last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"\b(fatal|error)\b", line, re.IGNORECASE)]
    return (telling or lines or ["no output"])[0 if telling else -1][:200]


def required() -> bool:
    """Whether an incomplete install is a failure (in CI) rather than something to be told about."""
    return os.environ.get("COMER_D2_REQUIRE_DETECTRON2") == "1"


# ---- doing --------------------------------------------------------------------------------------------------------


def run(command: Sequence[str], **env: str) -> str:
    """Run a command with its output in the log; on a terminal, count the seconds meanwhile.

    Returns:
        What it printed.

    Raises:
        StepError: it failed; with its most telling line.
    """
    scripts = sysconfig.get_path("scripts")  # ninja is there, also when a venv is not activated
    environment = os.environ | {"PATH": scripts + os.pathsep + os.environ.get("PATH", "")} | env
    with LOG.open("a+", encoding="utf-8", errors="replace") as log:
        log.write(f"\n$ {' '.join(command)}\n")
        log.flush()
        start, began = log.tell(), time.monotonic()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        while True:
            try:
                process.wait(timeout=1)
                break
            except subprocess.TimeoutExpired:
                if sys.stdout.isatty():
                    text = f" {time.monotonic() - began:.0f} s"
                    print(text + "\b" * len(text), end="", flush=True)
        log.seek(start)
        output = log.read()
    if process.returncode:
        raise StepError(why_failed(output))
    return output


def python(code: str) -> str:
    """Last line that code prints in a fresh interpreter (this one may have cached an absence)."""
    return run([sys.executable, "-c", code]).strip().splitlines()[-1]


def pip_install(*arguments: str, **env: str) -> None:
    """`pip install` that keeps an installed torch and torchvision, and setuptools in its bounds."""
    pinned = LOG.with_name("constraints.txt")
    kept = constraints({name: installed_version(name) for name in TORCH})
    pinned.write_text(f"{kept}{BUILD_TOOLS[0]}\n")
    pip = [sys.executable, "-m", "pip", "install", "--no-input", "--progress-bar", "off"]
    run([*pip, "--no-build-isolation", "-c", str(pinned), *arguments], **env)


def announce_compiling() -> None:
    print("compiling, takes minutes ... ", end="", flush=True)


def install_torch() -> str:
    """torch and torchvision, if either is missing."""
    importlib.invalidate_caches()
    missing = torch_to_install([name for name in TORCH if importlib.util.find_spec(name)])
    if missing:
        pip_install(*missing)
    return ", ".join(f"{name} {installed_version(name)}" for name in TORCH)


def install_build_tools() -> str:
    """What building with this Python's torch needs (pip does nothing where it is satisfied)."""
    pip_install(*BUILD_TOOLS)
    return f"setuptools {installed_version('setuptools')}"


def install_package() -> str:
    """This checkout, editable, with its compiled extension; without it where it cannot be built."""
    try:
        direct_url = importlib.metadata.distribution("comer_d2").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        direct_url = None
    now = fingerprint(ROOT, installed_version("torch"))
    reason = reason_to_build(
        json.loads(STAMP.read_text()) if STAMP.exists() else None,
        now,
        editable_here=is_editable_from(ROOT, direct_url),
        has_binary=any((ROOT / "comer_d2").rglob("*.so"))
        or any((ROOT / "comer_d2").rglob("*.pyd")),
    )
    if reason is None:
        return "up to date"
    STAMP.unlink(missing_ok=True)
    try:
        compilers = ("c++", "g++", "clang++", "cl")
        if not os.environ.get("CXX") and not any(map(shutil.which, compilers)):
            raise StepError("no C++ compiler found")
        announce_compiling()
        pip_install("-e", ".")
    except StepError as error:
        # Slow but complete: the operator has a plain PyTorch form.
        pip_install("-e", ".", COMER_D2_SKIP_BUILD="1")
        return f"installed WITHOUT the compiled operator, slow ({error})"
    partial = STAMP.with_suffix(".part")
    partial.write_text(json.dumps(now, indent=1))
    os.replace(partial, STAMP)
    return f"built ({reason})"


def install_detectron2() -> str:
    """Detectron2, unless one imports."""
    version = "from detectron2 import __version__; print(__version__)"
    try:
        return python(version)
    except StepError:
        announce_compiling()
    try:
        # Where one is installed but does not import, pip would count it as satisfied.
        broken = installed_version("detectron2") is not None
        pip_install(*(["--force-reinstall", "--no-deps"] if broken else []), DETECTRON2)
        return python(version)
    except StepError as error:
        raise StepError(
            f"Detectron2 could not be installed ({error}): the core works, but training, configs and the "
            "quickstart need it. See docs/INSTALL.md, then run `make install` again."
        ) from None


def install_extras() -> str:
    """What the quickstart and the tests import: the extra `test` of setup.py."""
    extras = [
        requirement.partition(";")[0].strip()
        for requirement in importlib.metadata.requires("comer_d2") or []
        if re.search(r"extra == .test.", requirement)
    ]
    try:
        pip_install(*extras)
    except StepError as error:
        raise StepError(
            f"{', '.join(extras)} could not be installed ({error}): the quickstart and the tests need them."
        ) from None
    return "present"


def check() -> str:
    """Import the result as a user would, and say what computes the operator."""
    return python(
        "import comer_d2; from comer_d2.ops import library_status; "
        "print('comer_d2', comer_d2.__version__, *(f'| {k}: {v}' for k, v in library_status().items()))"
    )


# title, what it does, whether the core needs it
STEPS: tuple[tuple[str, Callable[[], str], bool], ...] = (
    ("torch and torchvision", install_torch, True),
    ("build tools", install_build_tools, True),
    ("comer_d2 and its operator", install_package, True),
    ("Detectron2", install_detectron2, False),
    ("tools of quickstart and tests", install_extras, False),
    ("check", check, True),
)


def main() -> int:
    """Run every step; one line each. Returns the exit status."""
    LOG.parent.mkdir(exist_ok=True)
    LOG.write_text(f"{sys.executable}\n{sys.version}\n")
    print(f"Preparing {sys.executable} (log: {LOG.relative_to(ROOT)})")
    missing: list[str] = []
    for number, (title, step, core) in enumerate(STEPS, 1):
        print(f"[{number}/{len(STEPS)}] {title:<30} ", end="", flush=True)
        began = time.monotonic()
        try:
            print(f"{step()} ({time.monotonic() - began:.0f} s)")
        except StepError as error:
            if core:
                print("FAILED", flush=True)
                tail = LOG.read_text(encoding="utf-8", errors="replace").splitlines()[-15:]
                print("\n".join(tail), file=sys.stderr)
                print(f"make install: {title}: {error}. Whole log: {LOG}", file=sys.stderr)
                return 1
            print("missing", flush=True)
            missing.append(str(error))
    print("\n".join(missing) or READY)
    if missing and required():
        print("COMER_D2_REQUIRE_DETECTRON2 is set: what is missing is a failure.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
