"""Two clocks: one that never goes back, for ages, and the wall's, for stamps.

A machine's wall clock may be set while a stream is open. Moments are therefore taken from a steady
clock, which begins at the wall clock's time when the process starts, and become stamps of the wall
clock only where they leave the service.
"""

from __future__ import annotations

import time

_BEGUN_NS = time.time_ns() - time.monotonic_ns()
_DRIFT_NS = 10_000_000
"""Clocks that are read one after the other differ by less; more is a wall clock that was set."""


def steady_ns() -> int:
    """Nanoseconds since 1970 by this process's own count; differences are never negative."""
    return _BEGUN_NS + time.monotonic_ns()


def stamp_ns(moment_ns: int) -> int:
    """What the wall clock, as it is set now, would have shown at a moment of the steady clock."""
    set_by_ns = time.time_ns() - steady_ns()
    return moment_ns if abs(set_by_ns) < _DRIFT_NS else moment_ns + set_by_ns
