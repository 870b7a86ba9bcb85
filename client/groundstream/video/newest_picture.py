"""The newest picture of a source that does not wait: a camera or a network stream.

A thread of its own reads on, so that no old pictures pile up in the source while the reader is
busy (and no connection is lost for not being read). Knows no service.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

from groundstream.video.sources import SourceFrame, VideoSource


class NewestPicture:
    """Iterates a live source; pictures nobody asked for in time are skipped and counted."""

    def __init__(self, source: VideoSource) -> None:
        self.num_skipped = 0
        """Pictures that made room for newer ones."""
        self._source = source
        self._changed = threading.Condition()
        self._newest: SourceFrame | None = None
        self._error: Exception | None = None
        self._is_over = False
        self._is_closed = False

    def __iter__(self) -> Iterator[SourceFrame]:
        """Pictures from the newest on.

        Raises:
            SourceError: the source cannot be read on.
        """
        threading.Thread(target=self._read, name="source", daemon=True).start()
        try:
            while (picture := self._next()) is not None:
                yield picture
        finally:
            self._is_closed = True

    def _next(self) -> SourceFrame | None:
        with self._changed:
            self._changed.wait_for(lambda: self._newest is not None or self._is_over)
            picture, self._newest = self._newest, None
            if picture is None and self._error is not None:
                raise self._error
            return picture

    def _read(self) -> None:
        try:
            for picture in self._source:
                if self._is_closed:
                    return
                with self._changed:
                    self.num_skipped += self._newest is not None
                    self._newest = picture
                    self._changed.notify()
        except Exception as error:
            self._error = error
        finally:
            with self._changed:
                self._is_over = True
                self._changed.notify()
