"""Pauses between attempts, for everything that is tried again."""

from __future__ import annotations

import random

_MAX_DOUBLINGS = 60


def growing_pause_s(
    attempt: int, *, first_s: float, most_s: float, least_share: float = 0.5
) -> float:
    """The pause after failure number `attempt`, from 1: doubling, and never quite the same for the
    many who lost the same thing at once.

    Args:
        attempt: how many failures there were in a row.
        first_s: bound of the first pause.
        most_s: bound of every pause.
        least_share: of its bound that a pause lasts at least.
    """
    bound_s = min(most_s, first_s * 2.0 ** min(attempt - 1, _MAX_DOUBLINGS))
    return bound_s * random.uniform(least_share, 1.0)
