"""What a check of a dataset found."""

from collections.abc import Iterable

NOT_SET = "is not set"  # the finding of a key without a value
SHOWN = 3  # cases that an error names


class Findings:
    """Kinds of problems in the order in which they came up, each with its cases."""

    def __init__(self) -> None:
        self._cases: dict[str, list[str]] = {}

    def __bool__(self) -> bool:
        return bool(self._cases)

    def add(self, what: str, *cases: str) -> None:
        """Add cases of a problem; a problem without cases is one of the whole file."""
        self._cases.setdefault(what, []).extend(cases)

    def extend(self, what: str, cases: Iterable[str]) -> None:
        """Add cases of a problem, if there are any."""
        cases = list(cases)
        if cases:
            self.add(what, *cases)

    def lines(self, shown: int | None = SHOWN) -> list[str]:
        """One line for each kind of problem: the number of cases, and the first of them.

        Args:
            shown: how many cases are named; None: all.
        """
        return [
            summarise(what, cases, shown) if cases else what for what, cases in self._cases.items()
        ]


def summarise(what: str, cases: Iterable[str], shown: int | None = SHOWN) -> str:
    """The number of cases, what they are, and the first of them: ``2 boxes of zero size: ...``."""
    cases = list(cases)
    more = ", ..." if shown is not None and len(cases) > shown else ""
    return f"{len(cases)} {what}: {', '.join(cases[:shown])}{more}"
