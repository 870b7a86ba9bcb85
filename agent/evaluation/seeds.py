"""Figures of arms that were trained from several seeds, or from one. Knows no experiment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from agent.evaluation.tally import Estimate, Tally


@dataclass(frozen=True)
class Spread:
    """A figure over several seeds."""

    mean: float
    deviation: float
    """Standard deviation over seeds (n - 1)."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of two values or more."""
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)))

    def __str__(self) -> str:
        return f"{self.mean:.3f} ± {self.deviation:.3f}"


def over_seeds(tallies: Sequence[Tally]) -> dict[str, Spread | Estimate]:
    """Mean and deviation of every share over its seeds; of one seed, its interval over images."""
    if len(tallies) == 1:
        return dict(tallies[0].estimates())
    shares = [tally.estimates(num_resamples=1) for tally in tallies]
    common = [name for name in shares[0] if all(name in share for share in shares)]
    return {name: Spread.of([share[name].value for share in shares]) for name in common}
