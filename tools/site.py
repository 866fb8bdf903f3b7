"""What the documentation's site has beside docs/: README, CHANGELOG, and a reference from the docstrings.

A hook of mkdocs (mkdocs.yml names it); `make docs` builds the site.
"""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {"README.md": "index.md", "CHANGELOG.md": "CHANGELOG.md"}
ROOMS = ("ops", "layers", "network", "heads", "weights", "d2")


def as_page(text: str) -> str:
    """A page of the repository's root, with its links as they are from docs/; files outside have none there."""
    text = re.sub(r"\]\(docs/", "](", text)
    return re.sub(r"\[([^]]+)\]\((?!https?:|#|images/)(?!\w+\.md)[^)]*\)", r"\1", text)


def reference(room: str) -> str:
    """A page for a room: its docstring's first line, then each module that has one."""
    folder = ROOT / "comer_d2" / room
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts)
        for path in sorted(folder.rglob("*.py"))
        if path.name != "__init__.py"
    ]
    return f"# comer_d2.{room}\n\n" + "\n".join(f"::: {name}\n" for name in names)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are made here."""
    made = {page: as_page((ROOT / source).read_text()) for source, page in PAGES.items()}
    made |= {f"reference/{room}.md": reference(room) for room in ROOMS}
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files
