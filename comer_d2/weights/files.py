"""Weights on disk: read without executing anything in them, written whole or not at all."""

import argparse
import collections
import hashlib
import json
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

from .pickles import STAND_INS, load_pickle

# Bytes by which a tensor may be larger than what is stored of it, as expanded ones are: more than any
# tensor of a network has, and little enough to be looked at.
MOST_REPEATED = 2**32


class Ignored:
    """Takes the place of objects in a checkpoint that are no weights, whatever they hold."""

    def __setstate__(self, state: Any) -> None:
        """Keeps nothing."""


def no_attribute(*_: Any) -> None:
    """Takes the place of ``getattr``, by which those objects name their methods."""


# What checkpoints of DeiT, MAE, BEiT, DINO and OpenMMLab carry beside tensors: plain records and
# numbers. MMEngine's record of losses, in every checkpoint of MMDetection 3, is read as nothing.
HARMLESS: tuple[Any, ...] = (
    argparse.Namespace,
    collections.Counter,
    *((stand_in, name) for name, stand_in in STAND_INS.items()),
    (Ignored, "mmengine.logging.history_buffer.HistoryBuffer"),
    (no_attribute, "builtins.getattr"),
)
# Where training scripts put the weights, and the moving averages of them, in their checkpoints.
AVERAGES = ("teacher", "model_ema", "state_dict_ema", "ema_state_dict", "ema")
WRAPPERS = ("state_dict", "model", "module", "weights", *AVERAGES)
DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
}
CHUNK = 1 << 20


class WeightsError(ValueError):
    """Weights that cannot be read, or do not fit: names what is wrong and what to do."""


def read_weights(
    path: str | os.PathLike[str], *, sha256: str | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads the state dict of a checkpoint file.

    Args:
        path: a ``.safetensors`` file, one written by ``torch.save``, a ``.pkl`` of Detectron2, a
            ``.npz`` of JAX, or the ``.index.json`` of a file in parts.
        sha256: hexadecimal SHA-256 that the file must have.

    Returns:
        The state dict, and what else the file holds (epoch, arguments, optimizer, ...).

    Raises:
        WeightsError: no such file, a wrong SHA-256 or checksum, not a file of tensors, objects other
            than tensors and plain records in it, a tensor of no usual kind, or with a NaN or an
            infinity in it.
    """
    path = Path(path)
    part = re.search(r"-\d+-of-0*(\d+)\.", path.name)
    if part and int(part[1]) > 1:
        raise WeightsError(
            f"'{path}' is one of {part[1]} parts: name the '.index.json' that stands next to them"
        )
    return read_file(path, sha256)


def read_file(path: Path, sha256: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """As `read_weights`, of a file that may be one of several."""
    if path.is_dir():
        raise WeightsError(f"'{path}' is a folder: name the file in it")
    if not path.is_file():
        raise WeightsError(f"'{path}' does not exist (looked in {os.getcwd()})")
    if path.stat().st_size == 0:
        raise WeightsError(f"'{path}' is empty: get the file again")
    if sha256:
        check_sha256(path, sha256)
    content = read_parts(path) if path.name.endswith(".index.json") else read_content(path)
    if not isinstance(content, dict):
        raise WeightsError(f"'{path}' holds a {type(content).__name__}, not a state dict")
    weights, rest = unwrap(content, str(path))
    check_tensors(weights, f"'{path}'")
    return weights, rest


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Raises WeightsError if a file has another SHA-256."""
    found = sha256_of(path)
    if found != expected.strip().lower():
        raise WeightsError(
            f"'{path}' has SHA-256 {found}, not {expected}: it is another file, or was cut short; "
            "get it again"
        )


def read_parts(index: Path) -> dict[str, Tensor]:
    """Reads a state dict that is in several files, as Hugging Face's are, by its index."""
    try:
        place = json.loads(index.read_text())["weight_map"]
        files = sorted(set(place.values()))
    except (ValueError, LookupError, TypeError, AttributeError) as e:
        raise WeightsError(f"'{index}' is no index of a file in parts: it has no weight_map") from e
    outside = [name for name in files if not isinstance(name, str) or Path(name).name != name]
    if outside:
        raise WeightsError(f"'{index}' names files outside its own folder: {outside[:3]}")
    weights: dict[str, Tensor] = {}
    for name in files:
        weights |= read_file(index.parent / name)[0]
    if weights.keys() != place.keys():
        names = sorted(weights.keys() ^ place.keys())
        raise WeightsError(f"'{index}' and its files do not agree about {shortened(names)}")
    return weights


def read_content(path: Path) -> Any:
    """Reads one file, whatever its kind."""
    with path.open("rb") as f:
        start = f.read(9)
    if start[8:] == b"{" or path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError, ValueError, TypeError) as e:
            reason = f"'{path}' is not a whole safetensors file ({e}): get it again"
            raise WeightsError(reason) from e
    members = check_archive(path)
    if any(name.endswith("/constants.pkl") for name in members):
        raise WeightsError(
            f"'{path}' is a TorchScript archive, which can hold code: save its state_dict() alone"
        )
    try:
        if any(name.endswith(".npy") for name in members):
            return read_numpy_archive(path)
        with torch.serialization.safe_globals([*HARMLESS]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, about its own old names
            if path.suffix == ".pkl":
                return load_pickle(path)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as e:
        wanted = re.search(r"GLOBAL ([\w.]+)|but got <class '([\w.]+)'>", str(e))
        if wanted is None:
            raise not_weights(path, e) from e
        raise WeightsError(
            f"'{path}' wants the type {wanted[1] or wanted[2]}, and making it could execute code: it "
            "was not read. If you trust the file, load it once with torch.load(..., "
            "weights_only=False) and save its state dict alone"
        ) from e
    except Exception as e:  # the unpickler stumbles over cut and foreign bytes in many ways
        raise not_weights(path, e) from e


def check_archive(path: Path) -> list[str]:
    """Names of the files in a zip archive, whose checksums are compared; none if it is no archive."""
    if not zipfile.is_zipfile(path):
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            names = archive.namelist()
    except Exception as e:  # of many kinds, for damaged directories
        raise not_weights(path, e) from e
    if damaged:
        raise WeightsError(
            f"'{path}' is damaged: the checksum of '{damaged}' in it does not match. Get the file "
            "again, or use an older checkpoint"
        )
    return names


def read_numpy_archive(path: Path) -> dict[str, Tensor]:
    """Reads a ``.npz`` of numbers."""
    with np.load(path, allow_pickle=False) as arrays:
        return {name: torch.from_numpy(np.array(arrays[name])) for name in arrays.files}


def not_weights(path: Path, error: Exception) -> WeightsError:
    """The error for a file that is no whole checkpoint, with a guess at what it is."""
    with path.open("rb") as f:
        start = f.read(64)
    what = "cut short or no file of torch.save"
    if start.startswith(b"version https://git-lfs"):
        what = "a Git LFS pointer, not the file itself"
    elif start.lstrip()[:1] == b"<":
        what = "a web page"
    reason = str(error).partition("WeightsUnpickler error: ")[2].strip() or str(error).strip()
    reason = (reason or type(error).__name__).splitlines()[0][:120]
    return WeightsError(f"'{path}' cannot be read, it is {what}: get it again ({reason})")


def unwrap(content: dict[str, Any], name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict of a checkpoint, out of the entry that it is in, and the other entries.

    Args:
        content: what the file holds.
        name: of the file, for messages.

    Raises:
        WeightsError: if there is no state dict, or not only tensors in it.
    """
    rest: dict[str, Any] = {}
    seen = []
    while True:
        content = dict(dict.items(content))  # a pickled OrderedDict may have other items()
        wrapper = next((w for w in WRAPPERS if isinstance(content.get(w), dict)), None)
        if wrapper is None:
            break
        rest |= {key: value for key, value in content.items() if key != wrapper}
        seen.append(content[wrapper])
        if any(seen[-1] is outer for outer in seen[:-1]):
            raise WeightsError(f"'{name}': its entry '{wrapper}' contains itself")
        content = content[wrapper]
    other = [key for key, value in content.items() if not isinstance(value, Tensor)]
    if not content or len(other) == len(content):
        shown = [key if isinstance(key, str) else type(key).__name__ for key in content]
        raise WeightsError(f"'{name}' holds no tensors by name; its entries: {shown[:5]}")
    if other:
        raise WeightsError(
            f"'{name}': the entries {other[:5]} of its state dict are no tensors but "
            f"{sorted({type(content[key]).__name__ for key in other})}"
        )
    unnamed = [key for key in content if not isinstance(key, str)]
    if unnamed:
        raise WeightsError(f"'{name}': its state dict has the keys {unnamed[:5]}, not names")
    return content, rest


def averages_beside(rest: Mapping[str, Any]) -> list[str]:
    """Entries of a checkpoint that hold a moving average of the weights that were read."""
    return [name for name in AVERAGES if isinstance(rest.get(name), dict)]


def check_tensors(weights: Mapping[str, Tensor], label: str) -> None:
    """Raises WeightsError that names the first tensor that is no array of finite numbers."""
    for name, tensor in weights.items():
        kind = unusual(tensor)
        if kind:
            raise WeightsError(
                f"{label}: tensor '{name}' is {kind}: save its numbers as an ordinary tensor, such as "
                "a float32 one"
            )
        numbers = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
        if numbers.is_floating_point() and not torch.isfinite(numbers).all():
            raise WeightsError(
                f"{label}: tensor '{name}' has NaN or infinite values: the training that wrote it "
                "had diverged, or the file is damaged"
            )


def unusual(tensor: Tensor) -> str:
    """What a tensor is that a network cannot load as it stands; empty if it can."""
    if type(tensor) not in (Tensor, torch.nn.Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_nested:
        return "a nested tensor"
    if tensor.layout is not torch.strided:
        return f"sparse ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_meta:
        return "on the meta device, without values"
    if tensor.is_quantized:
        return f"quantised ({tensor.dtype})"
    repeated = tensor.numel() * tensor.element_size() - tensor.untyped_storage().nbytes()
    if repeated > MOST_REPEATED:
        return f"of shape {tuple(tensor.shape)}, which repeats the few numbers that it holds"
    return "" if tensor.dtype in DTYPES else f"of {tensor.dtype}"


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
    """Calls ``write`` with a temporary name next to ``path``, then puts the file in place."""
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


def shortened(names: Sequence[str], count: int = 4) -> str:
    """A list of names for a message: the first few of many."""
    shown = ", ".join(names[:count])
    return shown + (f", ... ({len(names)} in all)" if len(names) > count else "")
