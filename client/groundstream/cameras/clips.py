"""One camera's newest pictures in memory, and the snapshots and clips that events take from them.

Pictures are the JPEG bytes that were sent, bounded in seconds and in bytes. Owned by the camera's
task; only finished jobs go to the thread that writes (`groundstream/cameras/recording.py`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from groundstream.cameras.settings import RecordingSettings
from groundstream.scene_events import SceneEvent
from groundstream.types import Box, OutgoingFrame

_NS = 1_000_000_000
_LATENCY_S = 10.0
"""How long after its picture an event may be told and still find it."""


@dataclass(frozen=True)
class Shot:
    """One picture to keep."""

    name: str
    event_id: str
    frame: OutgoingFrame
    box: Box | None
    label: str
    camera: str


@dataclass
class Clip:
    """Pictures around an event, and around those that followed while it was filmed."""

    name: str
    camera: str
    frames: list[OutgoingFrame]
    until_ns: int
    latest_ns: int
    """It ends then, whatever happens."""
    num_bytes: int = 0
    event_ids: list[str] = field(default_factory=list)
    is_cut: bool = False
    """It ended before its time, for want of memory or because the camera stopped."""


class Clips:
    """What one camera has seen, and what becomes of it."""

    def __init__(
        self, camera: str, settings: RecordingSettings, submit: Callable[[Shot | Clip], None]
    ) -> None:
        """Nothing has been seen.

        Args:
            camera: its name, the first folder of what is written.
            settings: what to write.
            submit: takes what is to be written; does not wait.
        """
        self._camera = camera
        self._settings = settings
        self._submit = submit
        self._ring: deque[OutgoingFrame] = deque()
        self._num_bytes = 0
        self._clip: Clip | None = None

    def add(self, frame: OutgoingFrame) -> None:
        """The next picture."""
        self._ring.append(frame)
        self._num_bytes += len(frame.encoded)
        oldest_ns = frame.capture_time_ns - round((self._settings.before_s + _LATENCY_S) * _NS)
        while len(self._ring) > 1 and (
            self._ring[0].capture_time_ns < oldest_ns
            or self._num_bytes > self._settings.max_ring_bytes
        ):
            self._num_bytes -= len(self._ring.popleft().encoded)
        if (clip := self._clip) is None:
            return
        if frame.capture_time_ns > min(clip.until_ns, clip.latest_ns):
            self._finish()
        elif clip.num_bytes + len(frame.encoded) > self._settings.max_ring_bytes:
            clip.is_cut = True
            self._finish()
        else:
            clip.frames.append(frame)
            clip.num_bytes += len(frame.encoded)

    def note(self, event: SceneEvent) -> dict[str, str]:
        """Record an event, if its kind is recorded: names of what will be written, by sort."""
        if event.kind not in self._settings.kinds:
            return {}
        named: dict[str, str] = {}
        if self._settings.snapshots and (frame := self._frame_of(event)) is not None:
            name = f"{self._name(event)}.jpg"
            # The box is where the thing was when it began; on another picture it would be wrong.
            box = event.box if frame.sequence == event.began_sequence else None
            self._submit(Shot(name, event.id, frame, box, event.query, self._camera))
            named["snapshot"] = name
        if self._settings.clips and self._ring:
            named["clip"] = self._film(event)
        return named

    def close(self) -> None:
        """No more pictures come; what is being filmed ends here."""
        if self._clip is not None:
            self._clip.is_cut = True
            self._finish()
        self._ring.clear()
        self._num_bytes = 0

    def _frame_of(self, event: SceneEvent) -> OutgoingFrame | None:
        found = None
        for frame in reversed(self._ring):
            if frame.sequence == event.began_sequence:
                return frame
            if frame.sequence == event.sequence:
                found = frame
        return found

    def _film(self, event: SceneEvent) -> str:
        until_ns = event.capture_time_ns + round(self._settings.after_s * _NS)
        if self._clip is None:
            after_ns = event.began_time_ns - round(self._settings.before_s * _NS)
            frames = [frame for frame in self._ring if frame.capture_time_ns >= after_ns]
            frames = frames or [self._ring[-1]]
            latest_ns = frames[0].capture_time_ns + round(self._settings.max_s * _NS)
            self._clip = Clip(
                f"{self._name(event)}.mp4", self._camera, frames, until_ns, latest_ns,
                sum(len(frame.encoded) for frame in frames),
            )  # fmt: skip
        self._clip.until_ns = max(self._clip.until_ns, until_ns)
        self._clip.event_ids.append(event.id)
        return self._clip.name

    def _finish(self) -> None:
        clip, self._clip = self._clip, None
        assert clip is not None
        self._submit(clip)

    def _name(self, event: SceneEvent) -> str:
        moment = time.localtime(event.began_time_ns / _NS)
        day, clock = time.strftime("%Y-%m-%d", moment), time.strftime("%H%M%S", moment)
        return f"{self._camera}/{day}/{clock}-{event.kind.value.lower()}-{event.id[:8]}"
