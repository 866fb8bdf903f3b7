"""The core (operators, layers, network, heads, weights) stands on torch, timm and what they bring; only comer_d2.d2
knows Detectron2. Rooms import those below them alone, and no two files each other."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import comer_d2

PACKAGE = Path(comer_d2.__file__).parent
ROOT = PACKAGE.parent
# The one exception: comer_d2.ViTCoMer is Detectron2's Backbone where that imports, looked up when first asked for.
LAZY = PACKAGE / "__init__.py"
CORE = [
    path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != LAZY and not path.is_relative_to(PACKAGE / "d2")
]
ALLOWED = sys.stdlib_module_names | {
    "torch",
    "torchvision",
    "timm",
    "numpy",
    "safetensors",
    "scipy",
    "comer_d2",
}

WITHOUT_DETECTRON2 = """
import sys
for name in ("detectron2", "fvcore", "iopath", "omegaconf", "pycocotools"):
    sys.modules[name] = None  # to Python: not installed
"""


def run_without_detectron2(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT_DETECTRON2 + code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )


def imported_names(tree: ast.AST) -> set[str]:
    """Full names of the modules a source file imports, at any depth (relative imports stay in their package)."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f".{node.module or ''}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", CORE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_core_source_imports_torch_and_timm_only(path: Path) -> None:
    names = imported_names(ast.parse(path.read_text(encoding="utf-8")))
    absolute = {name for name in names if not name.startswith(".")}
    assert {name.partition(".")[0] for name in absolute} <= ALLOWED
    assert not {name for name in names if name.startswith(("comer_d2.d2", ".d2"))}


def test_the_wheel_asks_for_what_the_core_imports() -> None:
    """No more, so that the operator and the network install without Detectron2's packages, and no less."""
    code = (
        "import runpy, setuptools\n"
        "setuptools.setup = lambda **given: print(*given['install_requires'])\n"
        "runpy.run_path('setup.py')"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    asked = {requirement.partition(">=")[0] for requirement in printed.split()}
    assert asked == ALLOWED - sys.stdlib_module_names - {"comer_d2"}


# From the ground up; those of a line may import each other, file by file without circles.
ROOMS = (
    ("ops",),
    ("layers",),
    ("network",),
    ("heads",),
    ("weights",),
    (
        "d2.errors",
        "d2.new_folder",
    ),
    ("d2.data", "d2.modeling", "d2.evaluation", "d2.visualization"),
    ("d2.engine",),
    ("d2.image_input", "d2.results", "d2.predictor", "d2.tiling", "d2.video", "d2.comparison"),
    ("d2.export", "d2.demo", "d2.report"),
    ("d2.cli",),
    ("d2.commands",),
)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """The package's own modules that a file imports, at any depth, by their names in the package."""
    here = ["comer_d2", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = here[: len(here) + 1 - node.level] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            inner = name.removeprefix("comer_d2.")
            if inner != name:  # a module, or something in one
                found |= {inner if inner in modules else inner.rpartition(".")[0]} & modules
    return found


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    """Every module of the package, and those that it imports."""
    files = {module_name(path): path for path in PACKAGE.rglob("*.py") if path != LAZY}
    return {name: imported_modules(path, set(files)) - {name} for name, path in files.items()}


def test_no_arrow_runs_up(imports: dict[str, set[str]]) -> None:
    rank = {room: height for height, rooms in enumerate(ROOMS) for room in rooms}
    room_of = {
        name: next((room for room in rank if f"{name}.".startswith(f"{room}.")), None)
        for name in imports
    }
    # Beside the rooms there are the command line, and what tells about an installation.
    assert {name for name, room in room_of.items() if room is None} <= {
        "__main__", "d2", "info",
    }  # fmt: skip
    up = [
        f"{name} imports {other}"
        for name, others in imports.items()
        for other in others
        if room_of[name]
        and (room_of[other] is None or rank[room_of[other]] > rank[room_of[name]])
        and other != "d2"
    ]
    assert not up
    assert sum(map(len, imports.values())) > 200  # they were found


def test_no_files_import_each_other(imports: dict[str, set[str]]) -> None:
    """A module whose imports lead back to it, however far around."""

    def reached(name: str) -> set[str]:
        seen: set[str] = set()
        waiting = set(imports[name])
        while waiting:
            other = waiting.pop()
            if other not in seen:
                seen.add(other)
                waiting |= imports[other]
        return seen

    assert not [name for name in imports if name in reached(name)]


def test_core_imports_and_runs_without_detectron2() -> None:
    result = run_without_detectron2(
        """
import importlib, pkgutil, torch
import comer_d2, comer_d2.ops

names = ["comer_d2"]
for found in pkgutil.walk_packages(comer_d2.__path__, "comer_d2.", onerror=lambda name: None):
    if found.name.split(".")[1] != "d2":
        importlib.import_module(found.name)
        names.append(found.name)
assert {"comer_d2.network.vit_comer", "comer_d2.weights", "comer_d2.ops"} <= set(names), names
assert not [name for name in sys.modules if name.startswith("detectron2.")]

vit = comer_d2.network.ViT(
    embed_dim=24, depth=4, num_heads=2, window_size=2, window_block_indexes=(0, 2), pretrain_img_size=32
)
net = comer_d2.ViTCoMer(vit, deform_num_heads=2, stem_width=8, interaction_indexes=((0, 1), (2, 3)))
assert type(net).__name__ == "ViTCoMerNet", type(net)
with torch.no_grad():
    out = net.eval()(torch.randn(1, 3, 64, 96))
print({name: tuple(level.shape) for name, level in out.items()})
"""
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1] == str(
        {
            "res2": (1, 24, 16, 24),
            "res3": (1, 24, 8, 12),
            "res4": (1, 24, 4, 6),
            "res5": (1, 24, 2, 3),
        }
    )


def test_what_needs_detectron2_says_so_in_one_line() -> None:
    result = run_without_detectron2("import comer_d2.d2")
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert "Detectron2" in last
    assert "make install" in last


DO_WITHOUT = ("install.py", "site.py", "finetuning.py")  # the last starts train_net.py
SCRIPTS = [
    ROOT / "train_net.py",
    *(p for p in sorted((ROOT / "tools").glob("*.py")) if p.name not in DO_WITHOUT),
]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_say_so_too(path: Path) -> None:
    argument = "--short" if path.name == "quickstart.py" else "--help"
    result = run_without_detectron2(
        f"""
import runpy
sys.path.insert(0, {str(ROOT)!r})
sys.argv = [{path.name!r}, {argument!r}]
runpy.run_path({str(path)!r}, run_name="__main__")
"""
    )
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert "Detectron2" in last
    assert "make install" in last


@pytest.mark.parametrize("command", ["info", "--help"])
def test_commands_that_do_without_it(command: str) -> None:
    result = run_without_detectron2(
        f"from comer_d2.__main__ import main\nsys.exit(main({command.split()!r}))"
    )
    assert result.returncode == 0, result.stderr
    assert {"info": "operator on cpu"}.get(command, "COMMAND") in (result.stdout)


@pytest.mark.parametrize(
    "command", ["train", "eval", "predict", "compare", "data check", "convert"]
)
def test_other_commands_say_what_is_missing(command: str) -> None:
    result = run_without_detectron2(
        f"from comer_d2.__main__ import main\nsys.exit(main([*{command.split()!r}, '--help']))"
    )
    assert result.returncode == 2
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith(f"comer-d2 {command}: error:") and "make install" in line


def test_weights_convert_without_it() -> None:
    result = run_without_detectron2(
        """
import torch
from comer_d2.network import ViT
from comer_d2.weights import convert_weights

arguments = dict(embed_dim=24, depth=1, num_heads=3, window_size=0, window_block_indexes=())
weights = ViT(**arguments).state_dict()
with torch.device("meta"):
    model = ViT(**arguments)
converted, report = convert_weights(model, weights)
print(converted.keys() == weights.keys())
"""
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip().splitlines()[-1] == "True"
