"""`groundstream watch --events`: what happens in front of the camera, one JSON object a line."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TextIO

from groundstream.errors import SettingsError
from groundstream.event_detector import EventDetector
from groundstream.events import StreamEvent
from groundstream.scene_events import SceneEvent, event_to_json


class EventFile(contextlib.AbstractContextManager["EventFile"]):
    """A file to which events are added as they become certain.

    It is added to and never emptied, so that a watch that is started again loses nothing of the one
    before; every line is written at once.
    """

    def __init__(self, path: Path, detector: EventDetector) -> None:
        """Open the file.

        Args:
            path: made if it is not there; its folder must be.
            detector: makes the events; nobody else uses it.

        Raises:
            SettingsError: the file cannot be written.
        """
        self._detector = detector
        try:
            self._file: TextIO = path.open("a", encoding="utf-8", buffering=1)
        except OSError as error:
            raise SettingsError(f"events cannot be written to {path}: {error.strerror}") from None

    def __exit__(self, *_error: object) -> None:
        with self._file:
            self._write(self._detector.flush())

    def show(self, event: StreamEvent) -> None:
        """Write what has become certain with this.

        Raises:
            EventsError: see `EventDetector.update`.
        """
        self._write(self._detector.update(event))

    def _write(self, events: list[SceneEvent]) -> None:
        for event in events:
            self._file.write(event_to_json(event) + "\n")
