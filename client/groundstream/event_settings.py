"""How long things must hold before events tell of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from groundstream.errors import EventsError
from groundstream.zones import Anchor


@dataclass(frozen=True)
class EventSettings:
    """How long something must hold before it is told, and what counts as being somewhere.

    Raises:
        EventsError: a time, the margin or a number is impossible.
    """

    appear_s: float = 0.5
    """A thing has appeared when all answers have shown it for so long."""
    leave_s: float = 2.0
    """It has left when answers that know have not shown it for so long."""
    settle_s: float = 0.3
    """It is in or out of a zone, or over a line, when it has been seen there for so long."""
    answer_s: float = 1.0
    """An answer has changed when the new one has been given for so long."""
    unsure_leave_s: float | None = 10.0
    """A thing that answers which are not sure have not shown for so long is LOST; None: never."""
    max_gap_s: float = 1.0
    """Of a pause between two answers, at most so much counts as time of not being there."""
    margin: float = 0.005
    """How far past a line, or outside the border of a zone that it was in, a thing must be: share
    of the picture's longer side."""
    anchor: Anchor = Anchor.BOTTOM_CENTRE
    """The point of a box that says where the thing is."""
    max_denials: int | None = 2
    """So many key frames in a row that do not name a thing which the tracker still showed in them
    withdraw it, if only one key frame ever named it; None: never."""
    reorder_s: float = 0.0
    """Hold results so long, in capture time, to put them in the order of their frames."""
    counts: bool = True
    """Tell how many things a query has, in all."""
    zone_counts: bool = True
    """And in each zone."""

    def __post_init__(self) -> None:
        times = {
            "appear_s": self.appear_s, "leave_s": self.leave_s, "settle_s": self.settle_s,
            "answer_s": self.answer_s, "unsure_leave_s": self.unsure_leave_s or 0.0,
            "max_gap_s": self.max_gap_s, "reorder_s": self.reorder_s, "margin": self.margin,
        }  # fmt: skip
        for name, value in times.items():
            if not (math.isfinite(value) and value >= 0.0):
                raise EventsError(f"{name} is {value} and must be at least 0")
        if self.margin >= 0.5:
            raise EventsError(f"margin is {self.margin} and must be less than half the picture")
        if self.max_denials is not None and self.max_denials < 1:
            raise EventsError(f"max_denials is {self.max_denials} and must be at least 1")
