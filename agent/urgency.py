"""How long the asker of one piece of work waits, and what it may be kept waiting for.

Standing queries can do with fewer key frames; somebody who asks once cannot. Times are on
`time.monotonic`'s clock of one machine; what travels between machines is the time that is left.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from enum import IntEnum

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

    @property
    def left_s(self) -> float:
        """Seconds until the deadline; negative when it has passed."""
        return self.deadline_s - time.monotonic()

    @property
    def patience_s(self) -> float:
        """`left_s` as the language engine wants it, which sorts by nothing else."""
        return self.left_s + (0.0 if self.urgency is Urgency.ONE_OFF else _BEHIND_ALL_ONE_OFFS_S)
