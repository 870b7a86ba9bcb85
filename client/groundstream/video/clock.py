"""Times that only go forward, made of those a source gives. Knows no source."""

from __future__ import annotations

_BACK_S = 0.5
"""A step back that is longer is a clock that was restarted; a shorter one is disorder."""
_AHEAD_S = 10.0
"""A longer step ahead is another clock, too: pieces that were joined, or a camera that set its."""


class SteadyClock:
    """Seconds since the first picture, whatever the source's own clock does meanwhile."""

    def __init__(self, interval_s: float) -> None:
        """Begin; `interval_s` is what lies between two pictures where the source does not say."""
        self._interval_s = interval_s
        self._offset_s: float | None = None
        self._source_s = 0.0
        self._shown_s: float | None = None

    def show(self, source_s: float | None) -> tuple[float, float | None]:
        """The time of the next picture, and how far the source's clock jumped, if it did.

        Args:
            source_s: what the source says; None: nothing.
        """
        after_s = 0.0 if self._shown_s is None else self._shown_s + self._interval_s
        if source_s is None:
            self._shown_s = after_s
            return after_s, None
        jump_s = None
        step_s = source_s - self._source_s
        if self._offset_s is None:
            self._offset_s, self._source_s = after_s - source_s, source_s
        elif step_s < -_BACK_S or step_s > _AHEAD_S:
            jump_s = step_s
            self._offset_s, self._source_s = after_s - source_s, source_s
        self._source_s = max(self._source_s, source_s)
        shown_s = source_s + self._offset_s
        self._shown_s = shown_s if self._shown_s is None else max(shown_s, self._shown_s)
        return self._shown_s, jump_s

    def resume(self, at_s: float, interval_s: float | None = None) -> None:
        """Go on with another clock, its first picture at `at_s` or as soon as one may come."""
        self._interval_s = interval_s or self._interval_s
        self._offset_s = None
        if self._shown_s is not None:
            self._shown_s = max(at_s - self._interval_s, self._shown_s)
