"""The compiled libraries of the operators: which files they are, and if not there, why."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType

import torch  # noqa: F401  the libraries find LibTorch in the process, so it comes first

# Of schemas and their meaning; csrc/checks.h has the same number.
OP_VERSION = 1
FOLDER = Path(__file__).resolve().parents[1]


class OperatorWarning(UserWarning):
    """The compiled operator is not there, and the slower PyTorch code runs instead."""


def _load(name: str) -> tuple[ModuleType | None, str | None]:
    """The library `comer_d2.<name>`, whose import registers kernels, or why it is not usable.

    It is looked for in this package's folder alone. A plain import would also ask the finder that an
    editable install of another checkout leaves in the interpreter, and get that checkout's library.
    """
    full_name = f"{__name__.split('.')[0]}.{name}"
    spec = importlib.machinery.PathFinder.find_spec(full_name, [str(FOLDER)])
    if spec is None or spec.loader is None:
        return None, f"there is no {name} library in {FOLDER}"
    try:
        library = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(library)
    except (ImportError, OSError, RuntimeError) as error:
        return None, f"{spec.origin} did not load ({error})"
    version = getattr(library, "op_version", None)
    if version != OP_VERSION:
        return None, f"{spec.origin} is stale (version {version}, wanted {OP_VERSION})"
    sys.modules[full_name] = library
    return library, None


_cpu_library, _cpu_problem = _load("_C")
if _cpu_library is None:  # it holds the schemas that the CUDA kernels belong to
    _cuda_library, _cuda_problem = None, _cpu_problem
else:
    _cuda_library, _cuda_problem = _load("_C_cuda")

# A stale library has put its own schemas under the names: nothing of it is used then.
is_stale = _cpu_problem is not None and "is stale" in _cpu_problem


def cpu_capability() -> str | None:
    """The instruction set of the CPU kernels: "avx512", "avx2", "sse2", "baseline"; None without.

    The best one that the machine has, or the one that COMER_D2_CPU_CAPABILITY names.
    """
    return None if _cpu_library is None else _cpu_library.cpu_capability()


def library_status() -> dict[str, str]:
    """What computes the operator on each type of device.

    Returns:
        {"cpu": ..., "cuda": ...}: "compiled", the CPU's instruction set, and the file; or why the
        plain PyTorch code runs there.
    """
    cpu_file, cuda_file = (getattr(lib, "__file__", None) for lib in (_cpu_library, _cuda_library))
    return {
        "cpu": _cpu_problem or f"compiled ({cpu_capability()}), {cpu_file}",
        "cuda": _cuda_problem or f"compiled, {cuda_file}",
    }


_warned: set[str] = set()


def warn_of_fallback(device_type: str) -> None:
    """Says once for each type of device that the PyTorch code runs there, and what to do."""
    if device_type in _warned:
        return
    _warned.add(device_type)
    problems = {"cpu": _cpu_problem, "cuda": _cuda_problem}
    problem = problems.get(device_type)
    if problem is None and device_type in problems:
        problem = "the library was built from older sources, which lack an operator"
    problem = problem or f"there is no kernel for {device_type}"
    warnings.warn(
        f"comer_d2's operators run as plain PyTorch, several times slower: {problem}. Build it "
        "with `pip install --no-build-isolation -e .` in the repository of comer_d2.",
        OperatorWarning,
        stacklevel=2,
    )
