"""How a number is spread: counts below fixed bounds, as Prometheus wants them. Knows no names."""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Bounds for what a stage takes, from a lookup to a timeout."""
COUNTS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
"""Bounds for batches and passes."""


class Histogram:
    """Values since the start, without the values themselves."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: upper ones, increasing; what is above the last is counted too."""
        self.total = 0.0
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(bounds) + 1)

    def add(self, value: float) -> None:
        """One more."""
        self._counts[bisect.bisect_left(self._bounds, value)] += 1
        self.total += value

    def cumulative(self) -> Iterator[tuple[float, int]]:
        """Each upper bound, infinity last, and how many values do not exceed it."""
        below = 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            below += count
            yield bound, below
