"""What a report consists of."""

from dataclasses import dataclass, field


@dataclass
class Table:
    """A table: a title, column names, rows of texts and numbers."""

    title: str
    columns: list[str]
    rows: list[list[str | float | int | None]]
    note: str = ""


@dataclass
class Case:
    """An image that is looked at.

    Args:
        name: of its file.
        score: how bad it is; the page sorts by it.
        errors: kind -> how many.
        truth: JPEG of the ground truth.
        prediction: JPEG of the prediction.
    """

    name: str
    score: float
    errors: dict[str, int]
    truth: bytes
    prediction: bytes


@dataclass
class Section:
    """One task of the model: its tables, plots, and images."""

    title: str
    summary: list[tuple[str, str]] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    plots: list[str] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    note: str = ""
    prediction: str = "prediction"  # what the second picture of a case shows
