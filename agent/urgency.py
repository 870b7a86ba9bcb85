"""How long the asker of one piece of work waits, and what it may be kept waiting for.

Standing queries can do with fewer key frames; somebody who asks once cannot. Times are on
`time.monotonic`'s clock of one machine; what travels between machines is the time that is left.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

_BEHIND_ALL_ONE_OFFS_S = 3600.0


class Urgency(IntEnum):
    """Smaller goes first."""

    ONE_OFF = 0
    """Ground and Ask: somebody waits for exactly this."""
    STANDING = 1
    """A frame of a stream; another will come."""
    SPARE = 2
    """Nobody waits for it."""


@dataclass(frozen=True)
class Limits:
    """One call's deadline and urgency."""

    deadline_s: float = math.inf
    """On `time.monotonic`'s clock; a result that comes later is worth nothing."""
    urgency: Urgency = Urgency.ONE_OFF

    @classmethod
    def starting_now(cls, left_s: float | None, urgency: Urgency = Urgency.ONE_OFF) -> Limits:
        """Limits whose deadline is so many seconds away; None: at no time."""
        return cls(math.inf if left_s is None else time.monotonic() + left_s, urgency)

    def now(self) -> Limits:
        """These limits, which do not change."""
        return self

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; negative when it has passed."""
        return self.deadline_s - time.monotonic()

    @property
    def patience_s(self) -> float:
        """`left_s` as the language engine wants it, which sorts by nothing else."""
        return self.left_s + (0.0 if self.urgency is Urgency.ONE_OFF else _BEHIND_ALL_ONE_OFFS_S)


class CurrentLimits(Protocol):
    """Limits that may be widened while the work is under way."""

    def now(self) -> Limits:
        """As they are at this moment."""
        ...


class SharedLimits:
    """Limits of work that several callers wait for: the latest deadline, the highest urgency."""

    def __init__(self, limits: Limits) -> None:
        """`limits`: of the first caller."""
        self._limits = limits

    def widen(self, limits: Limits) -> None:
        """Another caller waits for the same work."""
        known = self._limits
        self._limits = Limits(
            max(known.deadline_s, limits.deadline_s), min(known.urgency, limits.urgency)
        )

    def now(self) -> Limits:
        """Those of the most patient and the most urgent caller so far."""
        return self._limits
