"""What a load did, element by element."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import torch

Status = Literal["loaded", "resampled", "not used"]
GROUPS = ("patch embed", "position", "blocks", "stem", "interactions", "outputs", "heads")
COLUMNS = ("loaded", "resampled", "not used", "neutral", "fresh")
# The first part of a name in the network -> its group; any other name is of the heads.
GROUP_OF = {
    "patch_embed": "patch embed",
    "norm_pre": "patch embed",
    "pos_embed": "position",
    "prefix_tokens": "position",
    "blocks": "blocks",
    "pyramid": "stem",
    "level_embed": "interactions",
    "interactions": "interactions",
    "upsample": "outputs",
    "out_norms": "outputs",
}


@dataclass(frozen=True)
class Entry:
    """Where some elements of the source went.

    Args:
        source: name in the file.
        elements: how many of its elements this is about.
        status: what became of them.
        target: name in the network, or that which it would have had.
        note: what was done to them, or why they are not used.
        dtype: of the tensor in the file, where it is known.
    """

    source: str
    elements: int
    status: Status
    target: str
    note: str = ""
    dtype: torch.dtype | None = None


@dataclass
class LoadReport:
    """What a load did: every element of the source, and every element of the network.

    Args:
        source: the file or id.
        family: the pretraining, and its layout.
        entries: where every element of the source went.
        neutral: names in the network that the family does not have -> their number of elements;
            set to what changes nothing (layer scale 1, bias 0).
        fresh: names in the network that keep their initial values -> their number of elements.
        notes: what else is to know.
    """

    source: str
    family: str
    entries: list[Entry] = field(default_factory=list)
    neutral: dict[str, int] = field(default_factory=dict)
    fresh: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def source_elements(self) -> int:
        """Elements of the source; the sum of all entries."""
        return sum(entry.elements for entry in self.entries)

    def of(self, status: Status) -> list[Entry]:
        """The entries of one status."""
        return [entry for entry in self.entries if entry.status == status]

    def counts(self) -> dict[str, Counter[str]]:
        """Elements by group and column of the table."""
        table: dict[str, Counter[str]] = {group: Counter() for group in GROUPS}
        for entry in self.entries:
            table[group_of(entry.target)][entry.status] += entry.elements
        for column, names in (("neutral", self.neutral), ("fresh", self.fresh)):
            for name, elements in names.items():
                table[group_of(name)][column] += elements
        return {group: counts for group, counts in table.items() if counts}

    def __str__(self) -> str:
        """The table, and a line for everything that is not simply loaded."""
        lines = [f"{self.family} from {self.source}: {self.source_elements:,} elements"]
        lines += table_lines(self.counts())
        for status in ("resampled", "not used"):
            lines += [f"  {status}: {text}" for text in by_note(self.of(status))]
        if self.neutral:
            lines.append(f"  neutral, for the family has none: {summary(self.neutral)}")
        return "\n".join(lines + [f"  {note}" for note in self.notes])


def group_of(name: str) -> str:
    """The group of a name in the network, or of one that belongs to the family's head."""
    if re.search(r"(^|\.)(trunk|vit)\.net\.", name):  # a hierarchical network of timm
        return "blocks"
    parts = name.split(".")
    while parts[0] in ("backbone", "bottom_up", "net", "vit") and len(parts) > 1:
        parts = parts[1:]
    return GROUP_OF.get(parts[0], "heads")


def table_lines(counts: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A table of numbers, with the columns that are not empty."""
    columns = [c for c in COLUMNS if any(row.get(c) for row in counts.values())]
    rows = [["", *columns]]
    for group, row in counts.items():
        rows.append([group, *(f"{row[c]:,}" if row.get(c) else "-" for c in columns)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  "
        + row[0].ljust(widths[0])
        + "".join(f"  {cell:>{w}}" for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]


def by_note(entries: list[Entry]) -> list[str]:
    """Entries with the same note in one line, with the names that they are about."""
    groups: dict[str, dict[str, int]] = {}
    for entry in entries:
        names = groups.setdefault(entry.note, {})
        names[entry.source] = names.get(entry.source, 0) + entry.elements
    return [f"{summary(names)}: {note}" for note, names in groups.items()]


def summary(names: Mapping[str, int], show: int = 4) -> str:
    """A few names and the number of elements of all."""
    listed = ", ".join(list(names)[:show]) + (
        f" and {len(names) - show} more" if len(names) > show else ""
    )
    return f"{listed} ({sum(names.values()):,})"
