"""Detectron2's ``.pkl`` checkpoints: plain pickles of NumPy arrays, read without executing anything."""

import _codecs
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

# All that a pickle of dicts, arrays and numbers needs, by the module names of numpy 1 and 2.
ALLOWED: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _codecs.encode,  # bytes, in pickles of Python 2's protocol
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": np.dtype,
    **{
        f"numpy.{core}.multiarray.{name}": getattr(np._core.multiarray, name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    },
}


class ForeignTypeError(pickle.UnpicklingError):
    """A pickle wants something that is not in ``ALLOWED``; says which as torch.load would."""


class NumpyUnpickler(pickle.Unpickler):
    """Knows the types in ``ALLOWED`` and no other."""

    def find_class(self, module: str, name: str) -> Any:
        """The type or function of a name in the pickle."""
        try:
            return ALLOWED[f"{module}.{name}"]
        except KeyError:
            raise ForeignTypeError(f"GLOBAL {module}.{name} is not allowed") from None


def load_numpy_pickle(path: Path) -> Any:
    """Reads a pickle, its arrays as tensors.

    Args:
        path: the file.

    Returns:
        What it holds.

    Raises:
        pickle.UnpicklingError: if it wants any other type.
        Exception: of many kinds, if it is no pickle or cut short.
    """
    with path.open("rb") as f:
        return with_tensors(NumpyUnpickler(f, encoding="latin1").load())


def with_tensors(value: Any) -> Any:
    """Arrays in a value, or in the dicts in it, as tensors."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))  # a copy: pickled arrays may be read-only
    if isinstance(value, Mapping):
        return {key: with_tensors(item) for key, item in value.items()}
    return value
