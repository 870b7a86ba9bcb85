"""What happened in front of all cameras within the last day, and whoever wants to hear of it.

Bounded in number and in time. A listener that is slow is told later, not kept in memory for. With a
file, every event is also a line of it, in the form that a camera runner's sinks are told
(docs/cameras.md), and the last day is read from it at the start. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.streams.buffers import Change
from groundstream.cameras.delivery import SinkAway
from groundstream.cameras.outbox import Waiting
from groundstream.cameras.records import event_record
from groundstream.cameras.settings import JsonLinesSettings
from groundstream.cameras.sinks import JsonLines
from groundstream.errors import SettingsError
from groundstream.scene_events import EventKind, SceneEvent

_LOG = logging.getLogger(__name__)
_DAY_NS = 86_400 * 1_000_000_000
_MAX_EVENTS = 20_000
_MAX_UNWRITTEN = 10_000
_MAX_READ_BYTES = 32 * 1024 * 1024
"""Of the end of a file, at the start."""
_MAX_LINE_BYTES = 16_384
_RETRY_S = 5.0


@dataclass
class LoggedEvent:
    """One event, told."""

    number: int
    """From 1, in the order in which they were told."""
    id: str
    camera: str
    kind: str
    time_ns: int
    """When it was told, since 1970."""
    body: bytes
    """Its record as JSON."""
    is_retracted: bool = False

    def view(self) -> dict[str, Any]:
        """As the page gets it."""
        record: dict[str, Any] = json.loads(self.body)
        return {**record, "retracted": self.is_retracted}


class EventLog:
    """The events of all cameras. One event loop's; `write` is to run as a task where there is a
    file."""

    def __init__(self, path: Path | None = None, *, max_events: int = _MAX_EVENTS) -> None:
        """Read what the file says of the last day.

        Args:
            path: lines of JSON are added to it, and nothing is ever removed; None: no file.
            max_events: kept in memory; of the camera with most the oldest makes room.

        Raises:
            SettingsError: the file cannot be written.
        """
        self.num_left_out = 0
        """Events of the last day that made room for newer ones."""
        self.num_unwritten = 0
        """Events that the file would not take."""
        self._max_events = max_events
        self._cameras: dict[str, deque[LoggedEvent]] = {}
        self._by_id: dict[str, LoggedEvent] = {}
        self._num_kept = 0
        self._last = 0
        self._change = Change()
        self._file: JsonLines | None = None
        self._unwritten: deque[Waiting] = deque()
        self._has_unwritten = asyncio.Event()
        self._closing = asyncio.Event()
        if path is not None:
            try:
                path.open("ab").close()
            except OSError as error:
                raise SettingsError(
                    f"events cannot be written to {path}: {error.strerror}"
                ) from None
            self._file = JsonLines(JsonLinesSettings(name="events", path=path))
            self._read(path)

    def add(self, camera: str, events: Iterable[SceneEvent]) -> None:
        """Tell what has happened in front of a camera."""
        for event in events:
            self._last += 1
            record = {**event_record(camera, event, {}), "number": self._last}
            body = json.dumps(record, ensure_ascii=False).encode()
            self._keep(record, body, event.retracts)
            if self._file is not None:
                self._unwritten.append(Waiting(self._last, body))
                if len(self._unwritten) > _MAX_UNWRITTEN:
                    self._unwritten.popleft()
                    self.num_unwritten += 1
                self._has_unwritten.set()
            self._change.happened()

    def newest(
        self, most: int, *, before: int | None = None, camera: str = "", kind: str = ""
    ) -> list[LoggedEvent]:
        """Events of the last day, the newest first.

        Args:
            most: so many at most.
            before: only those with a lower number.
            camera: only this one's; empty: of all.
            kind: only this one; empty: all but RETRACTED, which the retracted ones say themselves.
        """
        self._forget_old()
        queues = self._cameras.values() if not camera else [self._cameras.get(camera, deque())]
        wanted = [event for queue in queues for event in _newest_of(queue, most, before, kind)]
        return sorted(wanted, key=lambda event: -event.number)[:most]

    def counts(self) -> dict[str, int]:
        """How many events of the last day there are, by camera."""
        self._forget_old()
        return {camera: len(queue) for camera, queue in self._cameras.items()}

    async def follow(self) -> AsyncIterator[list[LoggedEvent]]:
        """What is told from here on, as it comes; what one is too slow for comes in one piece."""
        seen = self._last
        while True:
            if self._last > seen:
                news = sorted(
                    (event for queue in self._cameras.values() for event in _since(queue, seen)),
                    key=lambda event: event.number,
                )
                seen = self._last
                yield news
            else:
                await self._change.wait()

    async def write(self) -> None:
        """Add what is told to the file, until closed; a disk that takes nothing is tried again."""
        if self._file is None:
            return
        while True:
            await self._has_unwritten.wait()
            is_last = self._closing.is_set()
            self._has_unwritten.clear()
            batch = list(self._unwritten)
            try:
                await asyncio.to_thread(self._file.send, batch)
            except SinkAway as error:
                _LOG.warning("%d events wait: %s", len(batch), error)
                self._has_unwritten.set()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._closing.wait(), _RETRY_S)
            else:
                last = batch[-1].number if batch else 0
                while self._unwritten and self._unwritten[0].number <= last:
                    self._unwritten.popleft()
            if is_last:
                return

    def close(self) -> None:
        """Have `write` return when it has tried once more."""
        self._closing.set()
        self._has_unwritten.set()

    def _keep(self, record: dict[str, Any], body: bytes, retracts: str) -> None:
        kind = record["event"]["kind"]
        event = LoggedEvent(
            record["number"], record["id"], record["camera"], kind, record["time_ns"], body
        )
        self._cameras.setdefault(event.camera, deque()).append(event)
        self._by_id[event.id] = event
        self._num_kept += 1
        if retracts and (retracted := self._by_id.get(retracts)) is not None:
            retracted.is_retracted = True
        if self._num_kept > self._max_events:
            # A busy camera does not push out what happened at a quiet one.
            self._drop(max(self._cameras, key=lambda camera: len(self._cameras[camera])))
            self.num_left_out += 1

    def _forget_old(self) -> None:
        limit_ns = time.time_ns() - _DAY_NS
        for camera in list(self._cameras):
            while (queue := self._cameras.get(camera)) and queue[0].time_ns < limit_ns:
                self._drop(camera)

    def _drop(self, camera: str) -> None:
        queue = self._cameras[camera]
        event = queue.popleft()
        self._num_kept -= 1
        if self._by_id.get(event.id) is event:
            del self._by_id[event.id]
        if not queue:
            del self._cameras[camera]

    def _read(self, path: Path) -> None:
        limit_ns = time.time_ns() - _DAY_NS
        for line in _last_lines(path):
            # Others may write to the file, and a process that was killed leaves half a line.
            with contextlib.suppress(ValueError, TypeError, KeyError, AttributeError):
                record: dict[str, Any] = json.loads(line[:_MAX_LINE_BYTES])
                if record.get("type") != "event" or int(record["time_ns"]) < limit_ns:
                    continue
                EventKind(record["event"]["kind"])
                camera, identity = str(record["camera"]), str(record["id"])
                self._last += 1
                record = {**record, "camera": camera, "id": identity, "number": self._last}
                body = json.dumps(record, ensure_ascii=False).encode()
                self._keep(record, body, str(record["event"].get("retracts", "")))


def _newest_of(
    queue: Sequence[LoggedEvent], most: int, before: int | None, kind: str
) -> Iterator[LoggedEvent]:
    for event in reversed(queue):
        if most <= 0:
            return
        is_kind = event.kind == kind if kind else event.kind != EventKind.RETRACTED.value
        if is_kind and (before is None or event.number < before):
            most -= 1
            yield event


def _since(queue: Sequence[LoggedEvent], seen: int) -> Iterator[LoggedEvent]:
    for event in reversed(queue):
        if event.number <= seen:
            return
        yield event


def _last_lines(path: Path) -> list[bytes]:
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = max(0, size - _MAX_READ_BYTES)
            file.seek(start)
            lines = file.read(_MAX_READ_BYTES).split(b"\n")
    except OSError as error:
        raise SettingsError(f"events cannot be read from {path}: {error.strerror}") from None
    return lines[1:] if start else lines
