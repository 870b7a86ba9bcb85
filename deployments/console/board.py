"""The streams that can be seen through this console: last picture, last answers, events, books.

Each stream keeps one picture; a viewer that is slower than the stream skips. A stream that has
ended stays for a while, with its last picture, and says that it has ended. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from deployments.console.event_log import EventLog
from deployments.console.places import PlaceStore
from deployments.console.tiles import tile_of
from deployments.console.views import books_view
from deployments.streams.buffers import LatestValue, PictureBuffer
from groundstream.cameras.place_file import Places
from groundstream.errors import EventsError, Overloaded
from groundstream.event_detector import EventDetector, EventSettings
from groundstream.events import (
    KeyframeAnswer,
    Observed,
    OpenStreamInfo,
    StreamError,
    StreamEvent,
    StreamOpened,
    StreamStats,
)
from groundstream.types import FrameResult, OutgoingFrame, QueryResult

STALLED_S = 5.0
"""A picture that is older than this is not what the camera sees now."""
_ENDED_S = 60.0
"""So long an ended stream stays where it can be seen that it has ended."""
_ERROR_S = 10.0
"""So long an error can be read, also when the next picture was answered."""
_MAX_MARKS = 2048


class Origin(Enum):
    """Whose pictures a stream shows."""

    CAMERA = "CAMERA"
    """A camera or video that this console opens."""
    BROWSER = "BROWSER"
    """The camera of a visitor's device."""
    OTHER = "OTHER"
    """Another client of the service."""


class StreamState(Enum):
    """Whether a stream's picture is one of now."""

    WAITING = "WAITING"
    """There has been no picture yet."""
    LIVE = "LIVE"
    STALLED = "STALLED"
    """No newer picture has come for `STALLED_S`."""
    LOST = "LOST"
    """Its source or the service is away, and is tried again."""
    ENDED = "ENDED"


@dataclass
class DraftFigures:
    """What the language model's drafts saved, over the answers seen through this console."""

    num_answers: int = 0
    num_passes: int = 0
    num_drafted_tokens: int = 0
    num_prefix_tokens_reused: int = 0

    def add(self, answer: QueryResult) -> None:
        """Count one answer of the language model."""
        self.num_answers += 1
        self.num_passes += answer.num_passes
        self.num_drafted_tokens += answer.num_drafted_tokens
        self.num_prefix_tokens_reused += answer.num_prefix_tokens_reused


@dataclass(eq=False)
class Shown:
    """A picture and what was said about it."""

    encoded: bytes
    """As it was sent."""
    result: FrameResult
    taken_s: float
    """When the picture was taken, or came here where that is not known; monotonic clock."""
    _tile: asyncio.Future[bytes] | None = None

    @property
    def age_ms(self) -> float:
        """How old the picture is now."""
        return max(0.0, time.monotonic() - self.taken_s) * 1e3

    async def tile(self) -> bytes:
        """The picture in the size of the wall's tiles, scaled once for all who look at the wall."""
        if self._tile is None:
            self._tile = tile_of(self.encoded)
        # Who goes away while it is scaled takes it from nobody else.
        return await asyncio.shield(self._tile)


@dataclass
class BoardStream:
    """One stream; made by a `Board`."""

    number: int
    """From 1, of this console."""
    name: str
    """No other stream's that is open; places and events go by it."""
    title: str
    """Where its pictures come from, in words."""
    origin: Origin
    drafts: DraftFigures
    log: EventLog
    settings: EventSettings
    queries: tuple[str, ...] = ()
    books: dict[str, Any] = field(default_factory=dict)
    keyframe_ms: float | None = None
    """From the last key frame's arrival to what the model said about it."""
    error: str = ""
    """The last that went wrong; empty when all has been well for a while."""
    is_lost: bool = False
    """Its source or the service is away."""
    ended_s: float | None = None
    """When it ended, monotonic clock."""
    places_version: int = 0
    """Goes up with every change of its zones and lines."""
    _detector: EventDetector = field(default_factory=EventDetector)
    _pending: PictureBuffer = field(default_factory=PictureBuffer)
    _taken_s: OrderedDict[int, float] = field(default_factory=OrderedDict)
    _latest: Shown | None = None
    _shown: LatestValue[Shown] = field(default_factory=LatestValue)
    _error_s: float = 0.0

    @property
    def state(self) -> StreamState:
        """Whether its picture is one of now."""
        if self.ended_s is not None:
            return StreamState.ENDED
        if self.is_lost:
            return StreamState.LOST
        if self._latest is None:
            return StreamState.WAITING
        is_old = self._latest.age_ms > STALLED_S * 1e3
        return StreamState.STALLED if is_old else StreamState.LIVE

    @property
    def latest(self) -> Shown | None:
        """Its last picture, however old."""
        return self._latest

    def begin(self, places: Places) -> None:
        """Numbers of frames and tracks begin anew; events of two sessions share no id."""
        self._pending.clear()
        self._taken_s.clear()
        self._detector = EventDetector(
            places.zones,
            places.lines,
            settings=self.settings,
            stream=f"{self.name}/{uuid.uuid4().hex}",
        )

    def change_places(self, places: Places) -> None:
        """Go by other zones and lines from here on."""
        self.places_version += 1
        self._detector.change_places(places.zones, places.lines)

    def say(self, error: str, *, is_lost: bool = False) -> None:
        """Something is wrong; `is_lost`: so much that no pictures come."""
        self.error, self._error_s = error, time.monotonic()
        self.is_lost = self.is_lost or is_lost

    def note_sent(self, frame: OutgoingFrame) -> None:
        """A frame goes out; its picture is kept until something is said about it."""
        self._pending.put(frame.sequence, frame.encoded)
        self._taken_s[frame.sequence] = _monotonic(frame.capture_time_ns)
        while len(self._taken_s) > len(self._pending):
            self._taken_s.popitem(last=False)

    def note_event(self, event: StreamEvent) -> None:
        """The service said something about this console's own stream."""
        match event:
            case FrameResult():
                encoded = self._pending.take(event.sequence)
                taken_s = self._taken_s.pop(event.sequence, time.monotonic())
                # A late result finds no picture: what was there before is not shown again.
                if encoded is not None:
                    self._show(Shown(encoded, event, taken_s))
                if event.timings.language_ms:
                    self._count(event)
            case KeyframeAnswer():
                self.keyframe_ms = event.result.timings.total_ms
                self._count(event.result)
            case StreamStats():
                self.books = books_view(event)
            case StreamOpened():
                self.error, self.is_lost = "", False  # What kept it from being open is over.
            case StreamError():
                self.say(f"{event.code}: {event.message}")
        self._detect(event)

    def note_observed(self, seen: Observed) -> None:
        """A picture of another client's stream and what the service said about it."""
        self._show(Shown(seen.encoded, seen.result, time.monotonic()))
        result = seen.result
        if not result.capture_time_ns:
            # Its client has no clock; events need one, and any will do.
            result = replace(result, capture_time_ns=result.received_time_ns)
        self._detect(result)

    def note_listed(self, info: OpenStreamInfo) -> None:
        """What the service's list says of another client's stream."""
        self.queries = info.query_ids
        self.books = books_view(info.stats)

    def end(self) -> None:
        """No more will come; its viewers are let go."""
        self.ended_s = time.monotonic()
        self.log.add(self.name, self._detector.flush())
        self._pending.clear()
        self._taken_s.clear()
        self._shown.close()

    def pictures(self) -> AsyncIterator[Shown]:
        """Each time there is a newer picture: the newest; ends with the stream."""
        return self._shown.values()

    def summary(self) -> dict[str, Any]:
        """What a page is told of it; `age_ms` is that of its last picture."""
        return {
            "number": self.number,
            "name": self.name,
            "title": self.title,
            "origin": self.origin.value,
            "state": self.state.value,
            "age_ms": None if self._latest is None else self._latest.age_ms,
            "queries": list(self.queries),
            "books": self.books,
            "keyframe_ms": self.keyframe_ms,
            "error": self.error,
            "places_version": self.places_version,
        }

    def _show(self, shown: Shown) -> None:
        self.is_lost = False
        if time.monotonic() - self._error_s > _ERROR_S:
            self.error = ""
        self._latest = shown
        self._shown.put(shown)

    def _detect(self, event: StreamEvent) -> None:
        try:
            self.log.add(self.name, self._detector.update(event))
        except EventsError as error:
            self.say(str(error))

    def _count(self, result: FrameResult) -> None:
        for answer in result.results:
            self.drafts.add(answer)


class Board:
    """All of them."""

    def __init__(self, *, max_streams: int, log: EventLog, places: PlaceStore) -> None:
        """There are none.

        Args:
            max_streams: open at a time; as many that have ended are shown beside them.
            log: told what happens in front of them.
            places: zones and lines by name.
        """
        self.drafts = DraftFigures()
        self.log = log
        self.places = places
        self._max_streams = max_streams
        self._last = 0
        self._streams: dict[int, BoardStream] = {}
        self._marks: OrderedDict[tuple[int, int, int], None] = OrderedDict()
        places.on_change = self._change_places

    @property
    def has_room(self) -> bool:
        """Whether one more may be open."""
        num_open = sum(stream.ended_s is None for stream in self._streams.values())
        return num_open < self._max_streams

    def open(
        self,
        name: str,
        queries: tuple[str, ...],
        *,
        title: str = "",
        origin: Origin = Origin.CAMERA,
        settings: EventSettings | None = None,
    ) -> BoardStream:
        """A new stream; one of that name that has ended makes room for it.

        Args:
            name: letters, digits, - and _.
            queries: names of what is looked for.
            title: where its pictures come from; empty: the name says it.
            origin: whose they are.
            settings: how long things must hold to be told.

        Raises:
            Overloaded: as many are open as this console may have.
        """
        self._forget_ended(name)
        if not self.has_room:
            raise Overloaded(f"this console has {self._max_streams} streams open; close one first")
        self._last += 1
        stream = BoardStream(
            self._last, name, title or name, origin, self.drafts, self.log,
            settings or EventSettings(), queries,
        )  # fmt: skip
        stream.begin(self.places.of(name))
        self._streams[stream.number] = stream
        return stream

    def open_numbered(
        self, name: str, queries: tuple[str, ...], *, title: str, origin: Origin
    ) -> BoardStream:
        """As `open`; the stream's number becomes part of its name, so that no two share one."""
        return self.open(f"{name}-{self._last + 1}", queries, title=title, origin=origin)

    def end(self, stream: BoardStream) -> None:
        """The stream has ended; its viewers are told."""
        stream.end()
        self._forget_ended()

    def remove(self, stream: BoardStream) -> None:
        """Nobody is to see it any more."""
        stream.end()
        self._streams.pop(stream.number, None)

    def get(self, number: int) -> BoardStream | None:
        """The stream of that number, while it is shown."""
        return self._streams.get(number)

    def streams(self) -> list[BoardStream]:
        """All that are shown, oldest first."""
        self._forget_ended()
        return list(self._streams.values())

    def note_own(self, event: StreamEvent) -> None:
        """The service said this on a stream of this console."""
        if isinstance(event, FrameResult):
            self._marks[_mark(event)] = None
            while len(self._marks) > _MAX_MARKS:
                self._marks.popitem(last=False)

    def is_own(self, result: FrameResult) -> bool:
        """Whether a result that was observed is one that a stream of this console was given.

        The service's list of streams does not say whose they are; its times, to the nanosecond,
        are the same for everybody who is given the result.
        """
        return _mark(result) in self._marks

    def _change_places(self, name: str, places: Places) -> None:
        for stream in self._streams.values():
            if stream.name == name and stream.ended_s is None:
                stream.change_places(places)

    def _forget_ended(self, name: str | None = None) -> None:
        """Those that ended long ago, those of a name, and the oldest where there are too many."""
        ended = [stream for stream in self._streams.values() if stream.ended_s is not None]
        limit_s = time.monotonic() - _ENDED_S
        num_over = len(ended) - self._max_streams
        for index, stream in enumerate(ended):
            assert stream.ended_s is not None
            if stream.ended_s < limit_s or stream.name == name or index < num_over:
                del self._streams[stream.number]


def _mark(result: FrameResult) -> tuple[int, int, int]:
    return result.sequence, result.received_time_ns, result.answered_time_ns


def _monotonic(time_ns: int) -> float:
    """A time since 1970 on the monotonic clock; now, where it is none."""
    now_s = time.monotonic()
    return now_s - max(0, time.time_ns() - time_ns) / 1e9 if time_ns else now_s
