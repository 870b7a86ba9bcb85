"""The second level of the region cache: features of a frame that looked almost the same.

Opt-in per stream, and said so in every result it touches: the boxes and features are those of the
earlier picture, which is asked about in the later one's place. One frame per session is remembered,
the last that was really computed, so that small changes cannot add up unseen. Knows no models.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.frame import Frame
from agent.streaming.view import Sketch


@dataclass(frozen=True)
class Reused:
    """Whose features stood in, and how much that picture differs."""

    sequence: int
    difference: float
    """0..1: the largest change of any block of the picture."""


@dataclass(frozen=True)
class _Computed:
    frame: Frame
    sketch: Sketch


class FeatureReuse:
    """The last frame of a stream whose features were computed."""

    def __init__(self, max_difference: float) -> None:
        self._max_difference = max_difference
        self._last: _Computed | None = None

    def find(self, sketch: Sketch | None) -> tuple[Frame, Reused] | None:
        """The frame that can stand in for one that looks like this, if the last one will do."""
        if self._last is None or sketch is None or not sketch.is_like(self._last.sketch):
            return None
        difference = sketch.largest_difference(self._last.sketch)
        if difference > self._max_difference:
            return None
        return self._last.frame, Reused(self._last.frame.index, difference)

    def keep(self, frame: Frame, sketch: Sketch | None) -> None:
        """A frame's features have been computed."""
        if sketch is not None:
            self._last = _Computed(frame, sketch)
