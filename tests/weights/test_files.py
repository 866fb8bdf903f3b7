"""Files of weights: read without executing anything, one clear error for everything else."""

import argparse
import collections
import hashlib
import os
import pickle
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from comer_d2.weights import WeightsError, read_weights, write_weights
from comer_d2.weights.files import write_atomically

WEIGHTS = {
    "a.weight": torch.arange(6.0).view(2, 3),
    "a.bias": torch.tensor([1, 2], dtype=torch.float16),
    "n": torch.tensor(7),
}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
    )


def save_pickle(content: object, path: Path) -> None:
    with path.open("wb") as f:
        pickle.dump(content, f)


def save_legacy(content: object, path: Path) -> None:
    torch.save(content, path, _use_new_zipfile_serialization=False)


def arrays(weights: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in weights.items()}


KINDS = {
    "safetensors": ("a.safetensors", save_file),
    "safetensors by its content": ("a.bin", save_file),
    "torch": ("a.pth", torch.save),
    "before PyTorch 1.6": ("a.pt", save_legacy),
    "Detectron2's pickle": ("a.pkl", lambda weights, p: save_pickle(arrays(weights), p)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file(kind, tmp_path):
    name, save = KINDS[kind]
    save(WEIGHTS, tmp_path / name)
    weights, rest = read_weights(tmp_path / name)
    assert same(weights, WEIGHTS) and rest == {}


@pytest.mark.parametrize("suffix", ["", ".safetensors", ".pth", ".pt"])
def test_there_and_back(suffix, tmp_path):
    """Also views that share memory, which safetensors refuse."""
    path = tmp_path / f"weights{suffix}"
    base = torch.arange(12.0).view(3, 4)
    weights = WEIGHTS | {
        "column": base[:, 1],
        "transposed": base.T,
        "parameter": nn.Parameter(base),
    }
    write_weights(path, weights)
    assert same(read_weights(path)[0], {name: t.detach() for name, t in weights.items()})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    assert path.stat().st_mode & 0o777 == 0o644


WRAPPED = {
    "bare": lambda w: w,
    "state_dict": lambda w: {"state_dict": w, "meta": {"epoch": 12}},
    "model": lambda w: {"model": w, "optimizer": {"state": {}}, "epoch": 3},
    "module": lambda w: {"module": w},
    "teacher": lambda w: {"teacher": w},
    "two": lambda w: {"model": {"state_dict": w}},
    "the average beside the model": lambda w: {"model": w, "model_ema": {"a": torch.zeros(1)}},
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_out_of_what_training_scripts_save(wrapper, tmp_path):
    torch.save(WRAPPED[wrapper](WEIGHTS), tmp_path / "a.pth")
    weights, rest = read_weights(tmp_path / "a.pth")
    assert same(weights, WEIGHTS)
    assert rest.keys() == WRAPPED[wrapper](WEIGHTS).keys() - WEIGHTS.keys() - {
        "model",
        "state_dict",
    } - ({"module", "teacher"})


HARMLESS = {
    "argparse": argparse.Namespace(lr=5e-4, model="deit_small", nested=argparse.Namespace(a=1)),
    **{
        f"numpy {np.dtype(code)}": np.dtype(code).type(1)
        for code in ("?", "b", "B", "h", "H", "i", "I", "q", "Q", "e", "f", "d")
    },
    "numpy array": np.arange(3.0),
    "counter": collections.Counter({7: 0.1}),
    "ordered": collections.OrderedDict(a=[1, (2.5, None, True)]),
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("kind", HARMLESS)
def test_plain_records_beside_the_weights(kind, legacy, tmp_path):
    """What DeiT, MAE, BEiT, DINO and OpenMMLab leave in theirs."""
    save = save_legacy if legacy else torch.save
    save({"model": WEIGHTS, "beside": HARMLESS[kind]}, tmp_path / "a.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights, rest = read_weights(tmp_path / "a.pth")
    assert same(weights, WEIGHTS)
    assert np.array_equal(rest["beside"], HARMLESS[kind])


class Harmful:
    """Runs a command when it is unpickled."""

    def __reduce__(self):
        return (os.system, ("echo executed > executed",))


FOREIGN = {
    "a command": (Harmful(), r"(posix|nt)\.system"),
    "a module": (nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
    "a path": (Path("a"), r"pathlib\.\w*Path"),
    "a function": (np.sum, r"numpy\.sum"),
    "a built-in": (eval, r"(builtins\.)?eval"),
    "a defaultdict": (collections.defaultdict(list, a=[1]), r"collections\.defaultdict|list"),
}


@pytest.mark.parametrize("name", ["a.pth", "a.pkl"])
@pytest.mark.parametrize("kind", FOREIGN)
def test_anything_else_is_refused_and_named(kind, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content, wanted = FOREIGN[kind]
    if name == "a.pkl":
        save_pickle({"model": arrays(WEIGHTS), "beside": content}, tmp_path / name)
    else:
        torch.save({"model": WEIGHTS, "beside": content}, tmp_path / name)
    with pytest.raises(WeightsError, match=rf"a\.p.*wants the type {wanted}, and making it could"):
        read_weights(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def script(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(2, 2)).save(path)


def with_value(value: float):
    return lambda path: torch.save(WEIGHTS | {"b": torch.tensor([1.0, value])}, path)


WRONG = {
    "absent": (lambda path: None, r"' does not exist \(looked in "),
    "a folder": (lambda path: path.mkdir(), "is a folder"),
    "empty": (lambda path: path.touch(), "is empty"),
    "a web page": (lambda path: path.write_text("<!DOCTYPE html><html>"), "a web page"),
    "text": (lambda path: path.write_text("not found"), "cut short or no file of torch.save"),
    "a pointer": (
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0"),
        "a Git LFS pointer, not the file itself",
    ),
    "an archive of NumPy": (lambda path: np.savez(path.open("wb"), a=np.ones(3)), "NumPy archive"),
    "TorchScript": (script, "a TorchScript archive, which can hold code"),
    "a list": (lambda path: torch.save([torch.ones(2)], path), "holds a list, not a state dict"),
    "one tensor": (lambda path: torch.save(torch.ones(2), path), "holds a Tensor, not a state"),
    "nothing": (lambda path: torch.save({}, path), "holds no tensors by name; its entries: "),
    "no weights": (lambda path: torch.save({"epoch": 3}, path), "holds no tensors by name"),
    "no names": (lambda path: torch.save({0: torch.ones(1)}, path), r"has the keys \[0\]"),
    "a number among tensors": (
        lambda path: torch.save({"model": WEIGHTS | {"b": 0.5}}, path),
        r"the entries \['b'\] of its state dict are no tensors but \['float'\]",
    ),
    "NaN": (with_value(np.nan), "tensor 'b' has NaN or infinite values"),
    "infinity": (with_value(-np.inf), "tensor 'b' has NaN or infinite values"),
    "another PyTorch's": (
        lambda path: save_pickle({"a": torch.ones(1)}, path),
        "cannot be read|wants the type",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_one_clear_error(kind, tmp_path):
    make, message = WRONG[kind]
    path = tmp_path / "a.pth"
    make(path)
    with pytest.raises(WeightsError, match=message) as e:
        read_weights(path)
    assert str(path) in str(e.value)
    assert len(str(e.value)) < 400 + len(str(path))


@pytest.mark.parametrize("kind", KINDS)
def test_cut_short_anywhere(kind, tmp_path):
    name, save = KINDS[kind]
    save(WEIGHTS, tmp_path / name)
    content = (tmp_path / name).read_bytes()
    cuts = {0, 1, 7, 8, 9, *range(0, len(content), max(1, len(content) // 40)), len(content) - 1}
    for cut in sorted(cuts):
        (tmp_path / name).write_bytes(content[:cut])
        with pytest.raises(WeightsError, match=name):
            read_weights(tmp_path / name)


@pytest.mark.parametrize("kind", KINDS)
def test_sha256(kind, tmp_path):
    name, save = KINDS[kind]
    save(WEIGHTS, tmp_path / name)
    digest = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    for given in (digest, digest.upper(), f" {digest}\n"):
        assert same(read_weights(tmp_path / name, sha256=given)[0], WEIGHTS)
    for given in ("0" * 64, digest[:8]):
        with pytest.raises(WeightsError, match=f"has SHA-256 {digest}, not {given}"):
            read_weights(tmp_path / name, sha256=given)


def test_another_suffix_is_not_written(tmp_path):
    with pytest.raises(WeightsError, match=r"must end in \.safetensors, \.pth or \.pt"):
        write_weights(tmp_path / "a.pkl", WEIGHTS)
    assert not list(tmp_path.iterdir())


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"before")

    def write(temporary: Path) -> None:
        assert Path(temporary).parent == tmp_path
        Path(temporary).write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.pth", write)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pth"]
    assert (tmp_path / "a.pth").read_bytes() == b"before"
