"""What README.md shows runs as it stands there, and the files that it names exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
FOLDERS = "comer_d2|configs|tests|docs|tools|csrc|benchmarks"
EXAMPLES = {"configs/custom/screws.py"}  # files of the reader's own


def test_the_network_alone() -> None:
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (snippet,) = [code for code in snippets if "import ViTCoMer " in code]
    names: dict[str, object] = {}
    exec(snippet.replace("512", "64"), names)
    maps = names["maps"]
    assert isinstance(maps, dict)
    assert {name: tuple(level.shape) for name, level in maps.items()} == {
        "res2": (1, 384, 16, 16),
        "res3": (1, 384, 8, 8),
        "res4": (1, 384, 4, 4),
        "res5": (1, 384, 2, 2),
    }


@pytest.mark.parametrize("page", PAGES)
def test_files_that_docs_name_exist(page: str) -> None:
    text = (ROOT / page).read_text()
    named = {
        path.rstrip("./")
        for path in re.findall(rf"(?<![\w/.-])((?:{FOLDERS})/[\w./*-]*)(?![\w{{])", text)
    }
    links = {
        str((ROOT / page).parent.joinpath(link).resolve().relative_to(ROOT))
        for link in re.findall(r"\]\(([^)#\s:]+)(?:#[^)]*)?\)", text)
    }
    missing = [path for path in (named | links) - EXAMPLES if not list(ROOT.glob(path))]
    assert not missing, missing
