"""Pickles without execution: their NumPy arrays are built here, from numeric dtype, shape and bytes.

An unpickler gives the state of an object to the object itself, and NumPy's own classes believe it: a
dtype that is changed after an array was made of it makes the array read outside its memory. So
these classes take the place of NumPy's, in files of ``torch.save`` as in plain pickles.
"""

import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch

NUMERIC = re.compile(r"[?bBhHiIlLqQefd]|[biuf][1248]")


class NumpyDtype:
    """A numeric dtype of a pickle: takes the place of ``numpy.dtype``.

    Args:
        code: such as ``"f4"``; the flags that follow it say nothing about numeric types.
    """

    def __init__(self, code: Any, *flags: Any) -> None:
        if not isinstance(code, str) or not NUMERIC.fullmatch(code):
            raise pickle.UnpicklingError(f"GLOBAL numpy.dtype({str(code)[:20]!r}) is not allowed")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        """Takes the byte order, and no fields, sub-arrays or sizes of its own."""
        if not isinstance(state, tuple) or len(state) < 5 or state[1] not in ("<", "|", ">", "="):
            raise pickle.UnpicklingError("the state of a numpy.dtype is of no known form")
        if any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("GLOBAL numpy.dtype with fields is not allowed")
        self.dtype = self.dtype.newbyteorder(state[1])


class NumpyArray(np.ndarray):
    """An array of a pickle: takes the place of ``numpy.ndarray``."""

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """NumPy's own takes bytes as addresses of objects, and leaves memory as it was."""
        raise pickle.UnpicklingError("an array without a state is not allowed")

    def __setstate__(self, state: Any) -> None:
        """Takes a copy of the bytes, if they are those of the dtype and the shape."""
        _, shape, dtype, is_fortran, content = state
        array = build_array(content, dtype, shape, "F" if is_fortran is True else "C")
        own = (1, array.shape, array.dtype, is_fortran is True, array.tobytes("A"))
        super().__setstate__(own)  # type: ignore[arg-type]  # numpy's own, with the version


def build_array(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """An array in this machine's byte order, from what a pickle says about it."""
    if not isinstance(content, str | bytes | bytearray) or not isinstance(dtype, NumpyDtype):
        raise pickle.UnpicklingError("GLOBAL numpy.ndarray of other things than numbers")
    if isinstance(content, str):  # of Python 2
        content = content.encode("latin1")
    sizes = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    if not sizes or math.prod(shape) * dtype.dtype.itemsize != len(content):
        raise pickle.UnpicklingError(f"an array of shape {shape} has {len(content)} bytes")
    array = np.frombuffer(content, dtype.dtype).reshape(shape, order=order)
    return array.astype(dtype.dtype.newbyteorder("="))


def reconstruct(*_: Any) -> NumpyArray:
    """Takes the place of ``_reconstruct``: an empty array, whose state is to follow."""
    return np.empty(0, np.uint8).view(NumpyArray)


def from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray:
    """Takes the place of ``_frombuffer``, of pickle's protocol 5."""
    return build_array(content, dtype, shape, order if order in ("C", "F") else "C")


def scalar(dtype: Any, content: Any = b"") -> Any:
    """Takes the place of ``scalar``: one number."""
    return build_array(content, dtype, (), "C")[()]


def encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Takes the place of ``_codecs.encode``, which pickles of protocol 2 write bytes with."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"GLOBAL _codecs.encode to {encoding!r} is not allowed")
    return text.encode("latin1")


def no_bytes() -> bytes:
    """Takes the place of ``bytes``, which pickles of protocol 2 write empty arrays with."""
    return b""


# By the module names of NumPy 1 and 2.
STAND_INS: dict[str, Any] = {
    "numpy.dtype": NumpyDtype,
    "numpy.ndarray": NumpyArray,
    "_codecs.encode": encode,
    **dict.fromkeys(("bytes", "builtins.bytes", "__builtin__.bytes"), no_bytes),
    **{
        f"numpy.{core}.{name}": stand_in
        for core in ("core", "_core")
        for name, stand_in in (
            ("multiarray._reconstruct", reconstruct),
            ("multiarray.scalar", scalar),
            ("numeric._frombuffer", from_buffer),
        )
    },
}


class Unpickler(pickle._Unpickler):
    """Knows ``STAND_INS`` and ``OrderedDict``, and lets arrays and dtypes alone have a state."""

    dispatch: ClassVar[dict] = dict(pickle._Unpickler.dispatch)

    def find_class(self, module: str, name: str) -> Any:
        """The type or function of a name in the pickle."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        try:
            return STAND_INS[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name} is not allowed") from None

    def load_build(self) -> None:
        """Gives an object its state."""
        stack = self.stack  # type: ignore[attr-defined]
        state, owner = stack.pop(), stack[-1]
        if type(owner) not in (NumpyDtype, NumpyArray):
            raise pickle.UnpicklingError(f"a {type(owner).__name__} with a state is not allowed")
        owner.__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build


def load_pickle(path: Path) -> Any:
    """Reads a ``.pkl`` of Detectron2: dicts, arrays, which become tensors, and plain values.

    Raises:
        pickle.UnpicklingError: if it wants any other type.
        Exception: of many kinds, if it is no pickle or cut short.
    """
    with path.open("rb") as f:
        return with_tensors(Unpickler(f, encoding="latin1").load())


def with_tensors(value: Any) -> Any:
    """Arrays in a value, or in the dicts in it, as tensors."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value))  # a copy: pickled arrays may be read-only
    if isinstance(value, Mapping):
        return {key: with_tensors(item) for key, item in value.items()}
    return value
