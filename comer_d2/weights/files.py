"""Weights on disk: read without executing anything in them, written whole or not at all."""

import argparse
import collections
import hashlib
import os
import pickle
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from .numpy_pickle import load_numpy_pickle

# What checkpoints of DeiT, MAE, BEiT, DINO and OpenMMLab carry beside tensors: plain records and
# numpy's numbers, by the module names of numpy 1 and 2. Nothing here runs code of its own.
HARMLESS_TYPES: tuple[Any, ...] = (
    argparse.Namespace,
    collections.Counter,
    np.ndarray,
    np.dtype,
    *(
        (function, f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for function, name in (
            (np._core.multiarray.scalar, "scalar"),
            (np._core.multiarray._reconstruct, "_reconstruct"),
        )
    ),
    *(
        type(np.dtype(code))
        for code in ("?", "b", "B", "h", "H", "i", "I", "l", "L", "q", "Q", "e", "f", "d")
    ),
)


class Ignored:
    """Takes the place of objects in a checkpoint that are no weights, whatever they hold."""

    def __setstate__(self, state: Any) -> None:
        """Keeps nothing."""


def no_attribute(*_: Any) -> None:
    """Takes the place of ``getattr``, by which those objects name their methods."""


# MMEngine's record of the losses, in every checkpoint of MMDetection 3: read as nothing.
IGNORED_TYPES: tuple[tuple[Any, str], ...] = (
    (Ignored, "mmengine.logging.history_buffer.HistoryBuffer"),
    (no_attribute, "builtins.getattr"),
)
# Where training scripts put the weights in their checkpoints, most telling first.
WRAPPERS = ("state_dict", "model", "module", "teacher", "model_ema")
CHUNK = 1 << 20


class WeightsError(ValueError):
    """Weights that cannot be read, or do not fit: names what is wrong and what to do."""


def read_weights(
    path: str | os.PathLike[str], *, sha256: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the state dict of a checkpoint file.

    Args:
        path: a ``.safetensors`` file, one written by ``torch.save``, or a ``.pkl`` of Detectron2.
        sha256: hexadecimal SHA-256 that the file must have.

    Returns:
        The state dict, and what else the file holds (epoch, arguments, optimizer, ...).

    Raises:
        WeightsError: no such file, a wrong SHA-256, not a file of tensors, objects other than
            tensors and ``HARMLESS_TYPES`` in it, or a tensor with a NaN or an infinity.
    """
    content = read_file(path, sha256=sha256)
    weights, rest = unwrap(content, str(path))
    check_finite(weights, str(path))
    return weights, rest


def read_file(path: str | os.PathLike[str], *, sha256: str | None = None) -> dict[str, Any]:
    """Reads a file of tensors and plain values as it is; arguments and errors as `read_weights`."""
    path = Path(path)
    if path.is_dir():
        raise WeightsError(f"'{path}' is a folder: name the file in it")
    if not path.is_file():
        raise WeightsError(f"'{path}' does not exist (looked in {os.getcwd()})")
    if path.stat().st_size == 0:
        raise WeightsError(f"'{path}' is empty: get the file again")
    if sha256:
        check_sha256(path, sha256)
    content = read_safetensors(path) if is_safetensors(path) else read_torch(path)
    if not isinstance(content, Mapping):
        raise WeightsError(f"'{path}' holds a {type(content).__name__}, not a state dict")
    return dict(content)


def check_sha256(path: Path, expected: str) -> None:
    """Raises WeightsError if a file has another SHA-256."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != expected.strip().lower():
        raise WeightsError(
            f"'{path}' has SHA-256 {digest.hexdigest()}, not {expected}: it is another file, or "
            "was cut short; get it again"
        )


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a header, and its brace."""
    with path.open("rb") as f:
        return f.read(9)[8:] == b"{" or path.suffix == ".safetensors"


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Reads a ``.safetensors`` file."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as e:
        raise WeightsError(f"'{path}' is not a whole safetensors file ({e}): get it again") from e


def read_torch(path: Path) -> Any:
    """Reads a file of ``torch.save``, with ``weights_only=True`` and ``HARMLESS_TYPES``."""
    if is_torchscript(path):
        raise WeightsError(
            f"'{path}' is a TorchScript archive, which can hold code: save its state_dict() alone"
        )
    try:
        with (
            torch.serialization.safe_globals([*HARMLESS_TYPES, *IGNORED_TYPES]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # numpy's, about its own old names
            if path.suffix == ".pkl":
                return load_numpy_pickle(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        wanted = re.search(r"GLOBAL ([\w.]+)|but got <class '([\w.]+)'>", str(e))
        if wanted is None:
            raise not_weights(path, e) from e
        raise WeightsError(
            f"'{path}' wants the type {wanted[1] or wanted[2]}, and making it could execute code: it was not "
            "read. If you trust the file, load it once with torch.load(..., weights_only=False) "
            "and save its state dict alone"
        ) from e
    except Exception as e:  # the unpickler stumbles over cut and foreign bytes in many ways
        raise not_weights(path, e) from e


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive of ``torch.jit.save``."""
    return any(name.endswith("/constants.pkl") for name in names_in_archive(path))


def names_in_archive(path: Path) -> list[str]:
    """Names of the files in a zip archive; none if it is no such archive."""
    if not zipfile.is_zipfile(path):
        return []
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()


def not_weights(path: Path, error: Exception) -> WeightsError:
    """The error for a file that is no whole checkpoint, with a guess at what it is."""
    with path.open("rb") as f:
        start = f.read(64)
    what = "cut short or no file of torch.save"
    if any(name.endswith(".npy") for name in names_in_archive(path)):
        return WeightsError(
            f"'{path}' is a NumPy archive, as JAX's are: it was not read. timm has many of these "
            "weights as its own, under an id: 'timm:...'"
        )
    if start.startswith(b"version https://git-lfs"):
        what = "a Git LFS pointer, not the file itself"
    elif start.lstrip()[:1] == b"<":
        what = "a web page"
    reason = str(error).partition("WeightsUnpickler error: ")[2].strip() or str(error).strip()
    reason = (reason or type(error).__name__).splitlines()[0][:120]
    return WeightsError(f"'{path}' cannot be read, it is {what}: get it again ({reason})")


def unwrap(content: Mapping[str, Any], name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of a checkpoint, out of the entry that it is in, and the other entries.

    Args:
        content: what the file holds.
        name: of the file, for messages.

    Raises:
        WeightsError: if there is no state dict, or not only tensors in it.
    """
    rest: dict[str, Any] = {}
    while wrapper := next((w for w in WRAPPERS if isinstance(content.get(w), Mapping)), None):
        rest |= {key: value for key, value in content.items() if key != wrapper}
        content = content[wrapper]
    other = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if not content or len(other) == len(content):
        raise WeightsError(f"'{name}' holds no tensors by name; its entries: {list(content)[:5]}")
    if other:
        raise WeightsError(
            f"'{name}': the entries {other[:5]} of its state dict are no tensors but "
            f"{sorted({type(content[key]).__name__ for key in other})}"
        )
    unnamed = [key for key in content if not isinstance(key, str)]
    if unnamed:
        raise WeightsError(f"'{name}': its state dict has the keys {unnamed[:5]}, not names")
    return dict(content), rest


def check_finite(weights: Mapping[str, Tensor], name: str) -> None:
    """Raises WeightsError that names the first tensor with a NaN or an infinity in it."""
    for key, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise WeightsError(
                f"'{name}': tensor '{key}' has NaN or infinite values: the training that wrote it "
                "had diverged, or the file is damaged"
            )


def write_weights(
    path: str | os.PathLike[str], weights: Mapping[str, Tensor], *, wrapper: str = "model"
) -> None:
    """Writes a state dict: as safetensors, or as ``torch.save`` does where the name ends ``.pth``.

    The file appears whole or not at all.

    Args:
        path: ends in ``.safetensors``, ``.pth``, ``.pt``, or has no suffix: safetensors.
        weights: the state dict; copied, so its tensors may share memory.
        wrapper: the entry of a ``.pth`` that has the state dict: MMDetection reads ``state_dict``.

    Raises:
        WeightsError: for any other suffix, or a folder that does not exist.
    """
    path = Path(path)
    if path.suffix not in ("", ".safetensors", ".pth", ".pt"):
        raise WeightsError(f"'{path}' must end in .safetensors, .pth or .pt")
    # Safetensors refuse tensors that share memory or are not contiguous.
    tensors = {name: tensor.detach().clone().contiguous() for name, tensor in weights.items()}
    if path.suffix in (".pth", ".pt"):
        write_atomically(path, lambda temporary: torch.save({wrapper: tensors}, temporary))
    else:
        write_atomically(path, lambda temporary: save_file(tensors, temporary))


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Calls ``write`` with a temporary name beside ``path``, then puts the file in place."""
    folder = Path(path).parent
    if not folder.is_dir():
        raise WeightsError(f"the folder '{folder}' does not exist")
    descriptor, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".tmp")
    os.close(descriptor)
    temporary = Path(name)
    try:
        write(temporary)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o644)  # mkstemp's files are readable by their owner alone
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def first(names: Sequence[str], count: int = 5) -> str:
    """The first few of many names, for a message."""
    shown = ", ".join(names[:count])
    return shown + (f", ... ({len(names)} in all)" if len(names) > count else "")
