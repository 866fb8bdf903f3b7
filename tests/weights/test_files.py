"""Files of weights: read without executing anything, one clear error for everything else."""

import argparse
import collections
import hashlib
import json
import os
import pickle
import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from comer_d2.weights import WeightsError, load_weights, read_weights, write_weights
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
    "JAX's archive": ("a.npz", lambda weights, p: np.savez(p, **arrays(weights))),
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


ARRAY = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntU\x01btR"
# Kept in the memo, so that it can be changed once an array has been made of it.
DTYPE = b"cnumpy\ndtype\n(U\x02f4I0\nI1\ntRq\x01(I3\nU\x01<NNNI-1\nI-1\nI0\ntb"
STATE = b"(I1\n(I1\nt" + DTYPE + b"I00\nU\x04abcdt"
BUILDS = {
    "another dtype after the fact": (
        ARRAY + STATE + b"bh\x01(I3\nU\x01|NNNI4096\nI1\nI0\ntb0",
        r"^\[tensor\(1\.6778e\+22\)\]",
    ),
    "a dtype that grows after the fact": (
        ARRAY
        + STATE.replace(b"U\x02f4", b"U\x02S4").replace(b"I-1\nI-1\n", b"I4\nI1\n")
        + b"bh\x01(I3\nU\x01|NNNI1073741824\nI1\nI0\ntb0",
        r"wants the type numpy\.dtype",
    ),
    "objects": (
        ARRAY + STATE.replace(b"U\x02f4", b"U\x02O8") + b"b",
        r"wants the type numpy\.dtype",
    ),
    "fields": (
        ARRAY + STATE.replace(b"NNNI-1", b"N(U\x01xt}I-1") + b"b",
        r"wants the type numpy\.dtype",
    ),
    "fewer bytes than the shape": (
        ARRAY + STATE.replace(b"(I1\n(I1\nt", b"(I1\n(I9\nt") + b"b",
        r"shape \(9,\) has 4 bytes",
    ),
    "a negative size": (
        ARRAY + STATE.replace(b"(I1\n(I1\nt", b"(I1\n(I-1\nt") + b"b",
        r"shape \(-1,\) has 4 bytes",
    ),
    "a state of a dict": (
        b"ccollections\nOrderedDict\n)R}U\x01aU\x01bsb",
        "a OrderedDict with a state",
    ),
    "a state of a type": (b"cnumpy\nndarray\n}U\x01aU\x01bsb", "a type with a state"),
    "objects at addresses": (
        b"cnumpy\nndarray\n((I1\ntU\x01O" + b"c_codecs\nencode\n(U\x08AAAAAAAAU\x06latin1tRtR",
        "an array without a state",
    ),
    "memory as it was": (b"cnumpy\nndarray\n((I4\nttR", "an array without a state"),
    "memory as it was, made anew": (b"cnumpy\nndarray\n((I4\ntt\x81", "an array without a state"),
    "another codec": (b"c_codecs\nencode\n(U\x01aU\x03hextR", r"wants the type _codecs\.encode"),
}


@pytest.fixture(scope="module")
def read_in_another_process(tmp_path_factory) -> dict[str, str]:
    """What became of each of ``BUILDS``: NumPy's own classes would read outside their memory."""
    folder = tmp_path_factory.mktemp("pickles")
    for i, (made, _) in enumerate(BUILDS.values()):
        (folder / f"{i}.pkl").write_bytes(b"\x80\x02}U\x01a" + made + b"s.")
    script = f"""
from comer_d2.weights import read_weights
for i in range({len(BUILDS)}):
    try:
        weights, rest = read_weights(f"{folder}/{{i}}.pkl")
        print([tensor.sum() for tensor in weights.values()])
    except ValueError as e:
        print(e)
"""
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert result.returncode == 0, (result.returncode, result.stderr)
    return dict(zip(BUILDS, result.stdout.splitlines(), strict=True))


@pytest.mark.parametrize("kind", BUILDS)
def test_arrays_are_numbers_of_a_shape_and_nothing_else_has_a_state(kind, read_in_another_process):
    assert re.search(BUILDS[kind][1], read_in_another_process[kind])


@pytest.mark.parametrize(
    ("name", "protocol"), [*(("a.pkl", protocol) for protocol in range(6)), ("a.pth", 2)]
)
def test_arrays_of_every_protocol_and_order(name, protocol, tmp_path):
    numbers = {
        "plain": np.arange(6, dtype=np.float32).reshape(2, 3),
        "by columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "of the other byte order": np.arange(3, dtype=">i4"),
        "empty": np.zeros((0, 2), np.float16),
        "one": np.array(7),
    }
    content = {"model": numbers, "iteration": np.float64(3.5)}
    if name == "a.pkl":
        (tmp_path / name).write_bytes(pickle.dumps(content, protocol=protocol))
        weights, rest = read_weights(tmp_path / name)
        arrays = {key: tensor.numpy() for key, tensor in weights.items()}
    else:
        content = {"model": WEIGHTS, "arrays": numbers, "iteration": np.float64(3.5)}
        torch.save(content, tmp_path / name)
        weights, rest = read_weights(tmp_path / name)
        arrays = rest["arrays"]
    for key, array in arrays.items():
        assert array.dtype == numbers[key].dtype.newbyteorder("=")
        assert np.array_equal(array, numbers[key])
    assert rest["iteration"] == 3.5


def test_a_dict_that_contains_itself(tmp_path):
    content: dict = {"epoch": 3}
    content["model"] = content
    torch.save(content, tmp_path / "a.pth")
    save_pickle(content, tmp_path / "a.pkl")
    for name in ("a.pth", "a.pkl"):
        with pytest.raises(WeightsError, match=rf"{name}'.*(contains itself|recursion)"):
            read_weights(tmp_path / name)


UNUSUAL = {
    "meta": (lambda: torch.ones(2, device="meta"), "on the meta device, without values"),
    "sparse": (lambda: torch.eye(2).to_sparse(), r"sparse \(sparse_coo\)"),
    "sparse rows": (lambda: torch.eye(2).to_sparse_csr(), r"sparse \(sparse_csr\)"),
    "nested": (
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        "a nested tensor",
    ),
    "float8": (lambda: torch.ones(2).to(torch.float8_e4m3fn), "of torch.float8_e4m3fn"),
    "quantised": (
        lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
        r"quantised \(torch.qint8\)",
    ),
    "uint16": (lambda: torch.ones(2).to(torch.uint16), "of torch.uint16"),
    "expanded": (
        lambda: torch.zeros(1).expand(10**12),
        r"of shape \(1000000000000,\), which repeats the few numbers that it holds",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", UNUSUAL)
def test_tensors_of_an_unusual_kind(kind, tmp_path):
    make, message = UNUSUAL[kind]
    torch.save(WEIGHTS | {"b": make()}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=rf"a\.pth': tensor 'b' is {message}: save its numbers"):
        read_weights(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=rf"the state dict: tensor 'b' is {message}"):
        load_weights(nn.Linear(2, 2), {"b": make()})


def test_complex_numbers_are_finite_too(tmp_path):
    torch.save({"b": torch.tensor([1 + 2j, complex("nan")])}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="'b' has NaN or infinite values"):
        read_weights(tmp_path / "a.pth")


def test_a_zeroed_block_in_the_middle(tmp_path):
    """It reads as zeros without a word where checksums are not compared."""
    torch.save({"a": torch.arange(1.0, 20001.0)}, tmp_path / "a.pth")
    content = bytearray((tmp_path / "a.pth").read_bytes())
    content[40000:44096] = bytes(4096)
    (tmp_path / "a.pth").write_bytes(content)
    assert not torch.load(tmp_path / "a.pth")["a"].all()
    with pytest.raises(
        WeightsError, match=r"a\.pth' is damaged: the checksum of '\S+data/0' in it"
    ):
        read_weights(tmp_path / "a.pth")


def write_parts(folder: Path) -> Path:
    """Two files and their index, as Hugging Face writes them."""
    names = {
        "a.weight": "model-00001-of-00002.safetensors",
        "a.bias": "model-00002-of-00002.safetensors",
        "n": "model-00002-of-00002.safetensors",
    }
    for part in set(names.values()):
        save_file({n: t for n, t in WEIGHTS.items() if names[n] == part}, folder / part)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 36}, "weight_map": names}))
    return index


def test_a_file_in_parts(tmp_path):
    part = tmp_path / "model-00001-of-00003.safetensors"
    save_file(WEIGHTS, part)
    with pytest.raises(WeightsError, match=r"is one of 3 parts: name the '\.index\.json'"):
        read_weights(part)
    assert same(read_weights(write_parts(tmp_path))[0], WEIGHTS)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("model-00002", "../model-00002", "names files outside its own folder"),
        ("00002-of", "00003-of", r"model-00003-of-00002\.safetensors' does not exist"),
        ('"n"', '"m"', "do not agree about m, n"),
        ("weight_map", "map", "no index of a file in parts"),
        ("{", "", "no index of a file in parts"),
    ],
)
def test_a_wrong_index(old, new, message, tmp_path):
    index = write_parts(tmp_path)
    index.write_text(index.read_text().replace(old, new))
    with pytest.raises(WeightsError, match=message):
        read_weights(index)


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
    "an archive of objects": (
        lambda path: np.savez(path.open("wb"), a=np.array([{}]), allow_pickle=True),
        "Object arrays cannot be loaded",
    ),
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
