"""Names of classes in the keys of metrics."""

from collections import Counter
from collections.abc import Sequence


def distinct_names(names: Sequence[str]) -> list[str]:
    """Names that differ: those that come twice get their class's number, "tree (3)".

    Metrics are kept by name, so that one of two classes of the same name would be lost.

    Args:
        names: of the classes.

    Returns:
        As many names, all different.
    """
    counts = Counter(names)
    return [
        name if counts[name] == 1 else f"{name} ({number})" for number, name in enumerate(names)
    ]
