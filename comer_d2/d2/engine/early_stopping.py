"""When a run gets no better any more."""

from __future__ import annotations

import math
from collections.abc import Iterable


class EarlyStopping:
    """Counts evaluations in a row that were no better than the best before them.

    Args:
        metric: such as "bbox/AP".
        mode: "max" or "min".
        patience: how many of them end the run.
        min_delta: what is better by less than this is no better.
    """

    def __init__(self, metric: str, mode: str, patience: int, min_delta: float = 0.0) -> None:
        self.metric = metric
        self.patience = patience
        self.count = 0
        self.best = -math.inf
        self._sign = 1 if mode == "max" else -1
        self._min_delta = min_delta

    @property
    def is_due(self) -> bool:
        """Whether the run should end."""
        return self.count >= self.patience

    def observe(self, values: Iterable[float]) -> None:
        """Count the results of evaluations, in their order; NaN is no better than anything."""
        for value in values:
            if self._sign * value > self.best + self._min_delta:
                self.best, self.count = self._sign * value, 0
            else:
                self.count += 1

    def __str__(self) -> str:
        least = f" by more than {self._min_delta:g}" if self._min_delta else ""
        return (
            f"{self.metric} got no better than {self._sign * self.best:.3f}{least} in {self.count} evaluations "
            f"(train.early_stopping.patience={self.patience})"
        )
