"""A source as a runner wants it: so many pictures a second at most, again from its start if asked,
and stopped from any thread. Knows no service."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from groundstream.errors import SourceError
from groundstream.video.live import LiveSource
from groundstream.video.sources import SourceFrame, VideoSource

_SLACK = 0.1
"""Of a picture's time: sources' times are rounded."""


class PacedSource:
    """A `VideoSource` of another one's pictures."""

    def __init__(self, source: VideoSource, *, fps: float | None, repeat: bool) -> None:
        """Nothing is read yet.

        Args:
            source: iterated by nobody else.
            fps: most pictures a second; None: all.
            repeat: begin again when a source with an end has ended.
        """
        self.fps = source.fps
        self.num_left_out = 0
        """Pictures of a source with an end that came sooner than wanted; what a live source skips,
        it counts itself."""
        self._source = source
        self._interval_s = 0.0 if fps is None else 1.0 / fps
        self._repeat = repeat and not source.is_live
        self._stopped = threading.Event()

    @property
    def is_live(self) -> bool:
        """See `VideoSource`."""
        return self._source.is_live

    def stop(self) -> None:
        """End the iteration, from any thread."""
        self._stopped.set()
        if isinstance(self._source, LiveSource):
            self._source.stop()

    def __iter__(self) -> Iterator[SourceFrame]:
        """Pictures, until the source has ended or is stopped.

        Raises:
            SourceError: the source cannot be read on.
        """
        return self._newest() if self._source.is_live else self._played()

    def _newest(self) -> Iterator[SourceFrame]:
        pictures = iter(self._source)
        due_s = 0.0
        try:
            while not self._stopped.wait(max(0.0, due_s - time.monotonic())):
                picture = next(pictures, None)
                if picture is None:
                    return
                # From when it was due, not from when it came: one that came late would make all
                # that follow late, too.
                now_s = time.monotonic()
                due_s = max(due_s + self._interval_s, now_s - self._interval_s)
                yield picture
        finally:
            if isinstance(self._source, LiveSource):
                self._source.stop()

    def _played(self) -> Iterator[SourceFrame]:
        offset_s = shown_s = due_s = 0.0
        while True:
            num_pictures = 0
            for picture in self._source:
                if self._stopped.is_set():
                    return
                num_pictures += 1
                shown_s = offset_s + picture.pts_s
                if shown_s < due_s - _SLACK * self._interval_s:
                    self.num_left_out += 1
                    continue
                due_s = max(due_s + self._interval_s, shown_s)
                yield SourceFrame(picture.rgb, shown_s, picture.capture_time_ns)
            if not self._repeat:
                return
            if not num_pictures:
                raise SourceError("there is no picture in this source")
            offset_s = shown_s + 1.0 / self._source.fps
