"""Which frames the language model sees: by what happens, not by counting. Knows no pictures."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from agent.settings import KeyframeSettings
from agent.streaming.policy import Priority


class KeyframeReason(Enum):
    """Why a frame became a key frame."""

    FIRST = "FIRST"
    QUERIES_CHANGED = "QUERIES_CHANGED"
    REQUESTED = "REQUESTED"
    SCENE_CHANGED = "SCENE_CHANGED"
    TRACK_UNCERTAIN = "TRACK_UNCERTAIN"
    REFRESH = "REFRESH"


@dataclass(frozen=True)
class Situation:
    """What there is to know about a frame when it comes."""

    now_s: float
    priority: Priority = Priority.NORMAL
    has_queries: bool = True
    all_unanswered: bool = False
    """No standing query has been answered yet."""
    some_unanswered: bool = False
    change: float = 0.0
    """Share of the picture that changed since the last key frame and that no track explains."""
    uncertainty: float = 0.0
    """Of the least sure track, in box sizes."""
    max_age_s: float | None = None
    """What the client still accepts as evidence."""


class KeyframeSelector:
    """Chooses key frames of one stream within a share of the time.

    One key frame at a time is answered. Between two lies at least the pause that keeps the
    stream's share of the slow path, so a slow model sees fewer frames and a fast one more.
    """

    def __init__(self, settings: KeyframeSettings) -> None:
        self._settings = settings
        self._last_s = 0.0
        self._not_before_s = 0.0
        self._retry_s = 0.0
        self._busy = False

    @property
    def busy(self) -> bool:
        """True while a key frame is being answered."""
        return self._busy

    def reason(self, now: Situation) -> KeyframeReason | None:
        """Why this frame should be a key frame; None when it should not."""
        if not now.has_queries or self._busy or now.priority is Priority.LOW:
            return None
        if now.priority is Priority.HIGH:
            return KeyframeReason.REQUESTED
        if now.now_s < self._retry_s:
            return None
        if now.all_unanswered:
            return KeyframeReason.FIRST
        if now.some_unanswered:
            return KeyframeReason.QUERIES_CHANGED
        if now.now_s < self._not_before_s:
            return None
        if now.change >= self._settings.scene_change:
            return KeyframeReason.SCENE_CHANGED
        if now.uncertainty >= self._settings.uncertainty:
            return KeyframeReason.TRACK_UNCERTAIN
        if now.now_s - self._last_s >= self._refresh_s(now.max_age_s):
            return KeyframeReason.REFRESH
        return None

    def started(self, now_s: float) -> None:
        """A key frame is being answered."""
        self._busy = True
        self._last_s = now_s

    def finished(self, now_s: float, *, failed: bool = False) -> None:
        """It has been answered, or could not be."""
        self._busy = False
        share = self._settings.busy_share
        pause_s = (now_s - self._last_s) * (1.0 / share - 1.0)
        self._not_before_s = max(now_s + pause_s, self._last_s + self._settings.least_interval_s)
        if failed:
            self._retry_s = now_s + self._settings.retry_after_s

    def _refresh_s(self, max_age_s: float | None) -> float:
        """Early enough that the evidence does not expire while it is being renewed."""
        refresh_s = self._settings.refresh_s
        return refresh_s if max_age_s is None else min(refresh_s, max_age_s / 2.0)
