"""What the node does, without ROS: pictures in, messages' fields out, for as long as it is asked.

`node.py` puts ROS's names on it. Nothing here imports rclpy or a message.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from groundstream import aio
from groundstream.channel import TlsOptions, find_token
from groundstream.errors import InvalidQuery, SettingsError
from groundstream.events import (
    QueriesAck,
    Reconnecting,
    StreamError,
    StreamEvent,
    StreamOpened,
    StreamStats,
)
from groundstream.exporters import to_detection2d_array
from groundstream.types import AnswerMode, FrameResult, OutgoingFrame, StreamPolicy
from groundstream.watch_stream import Reconnect, WatchStream

READABLE = ("jpeg", "jpg", "png", "webp", "bmp")
_MODES = {"follow": AnswerMode.FOLLOW, "ground": AnswerMode.GROUND}
_NS_PER_S = 1_000_000_000
_MAX_UNDER_WAY = 1_000
"""Pictures without an answer whose frame ids are kept."""
_FIRST_CHANGE = 1
"""The queries that a stream begins with."""
_AGAIN_S = 1.0
"""Before another stream is opened in place of one that ended."""
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Parameters:
    """What the node is told when it starts; defaults are those of its parameters."""

    target: str = "127.0.0.1:50051"
    queries: tuple[str, ...] = ("person",)
    frame_id: str = ""
    """Empty: that of the picture."""
    mode: str = "follow"
    max_age_ms: float = 2000.0
    tls_ca: str = ""
    token_file: str = ""

    @classmethod
    def declared(cls, declare: Callable[[str, Any], Any]) -> Parameters:
        """Each by its name, and checked.

        Args:
            declare: given a name and a default, says the value.

        Raises:
            SettingsError: one has a value that means nothing; names it.
        """
        given: dict[str, Any] = {}
        for name, default in asdict(cls()).items():
            is_list = isinstance(default, tuple)
            value = declare(name, list(default) if is_list else default)
            given[name] = tuple(value or ()) if is_list else value
        parameters = cls(**given)
        parameters._check()
        return parameters

    @property
    def policy(self) -> StreamPolicy:
        """How the stream is to be answered."""
        return StreamPolicy(mode=_MODES[self.mode], max_age_ms=self.max_age_ms)

    @property
    def tls(self) -> TlsOptions | None:
        """How the connection is encrypted, if it is."""
        return TlsOptions(Path(self.tls_ca)) if self.tls_ca else None

    @property
    def token(self) -> str | None:
        """The token to show, if any."""
        return find_token(Path(self.token_file) if self.token_file else None)

    def _check(self) -> None:
        host, _, port = self.target.rpartition(":")
        if not host or not port.isdecimal():
            raise SettingsError(f"parameter target: {self.target!r} is not host:port")
        if self.mode not in _MODES:
            raise SettingsError(f"parameter mode: {self.mode!r} is not {' or '.join(_MODES)}")
        if not (math.isfinite(self.max_age_ms) and self.max_age_ms >= 0):
            raise SettingsError(
                f"parameter max_age_ms: {self.max_age_ms} is not a number of milliseconds, "
                "0 or more"
            )
        if not self.queries or not all(query.strip() for query in self.queries):
            raise SettingsError(
                f"parameter queries: {list(self.queries)} should name at least one thing to look "
                "for, and nothing empty"
            )


def frame_of(message: Any, sequence: int) -> OutgoingFrame:
    """A picture as it is sent on: its bytes untouched, its stamp as capture time.

    Args:
        message: a sensor_msgs/CompressedImage.
        sequence: must increase.

    Raises:
        ValueError: the bytes are no picture in colour (a depth image, say).
    """
    kind = message.format.lower()
    if "compresseddepth" in kind or not any(name in kind for name in READABLE):
        raise ValueError(f"format {message.format!r} is not one of {', '.join(READABLE)}")
    stamp = message.header.stamp
    return OutgoingFrame(
        bytes(message.data), sequence, capture_time_ns=stamp.sec * _NS_PER_S + stamp.nanosec
    )


def fill(message: Any, given: Mapping[str, Any], elements: Mapping[str, type]) -> Any:
    """Set the fields of a ROS message, of those inside it and of those in its lists; returns it.

    Args:
        message: as its class makes it.
        given: by ROS's names, as `groundstream.exporters` gives them.
        elements: class of the elements of each list, by the list's name.
    """
    for name, value in given.items():
        if isinstance(value, Mapping):
            fill(getattr(message, name), value, elements)
        elif isinstance(value, list):
            made = [fill(elements[name](), element, elements) for element in value]
            setattr(message, name, made)
        else:
            setattr(message, name, value)
    return message


def queries_of(text: str) -> list[str]:
    """What the `queries` topic asks for: parts between commas, empty ones left out."""
    return [part.strip() for part in text.split(",") if part.strip()]


class Newest(Generic[_Item]):
    """From ROS's thread to the event loop; one item waits, a newer one takes its place."""

    def __init__(self) -> None:
        self.num_replaced = 0
        """Items that a newer one took the place of."""
        self._loop = asyncio.get_running_loop()
        self._lock = threading.Lock()
        self._waiting: list[_Item] = []
        self._came = asyncio.Event()

    def put(self, item: _Item) -> None:
        """From any thread."""
        with self._lock:
            self.num_replaced += len(self._waiting)
            self._waiting = [item]
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody asks any more.
            self._loop.call_soon_threadsafe(self._came.set)

    async def __aiter__(self) -> AsyncIterator[_Item]:
        while True:
            await self._came.wait()
            self._came.clear()
            with self._lock:
                items, self._waiting = self._waiting, []
            for item in items:
                yield item


@dataclass
class Books:
    """Where the pictures went."""

    taken: int = 0
    """From the topic."""
    unreadable: int = 0
    """Of those, no pictures in colour."""
    published: int = 0
    errors: int = 0
    """Pictures that the service refused or failed at."""
    reconnects: int = 0
    lost: int = 0
    """Pictures under way when a connection broke, which nobody answers."""
    stream: StreamStats = field(default_factory=StreamStats)
    """The service's own, of this stream."""
    trouble: str = "not connected yet"
    """What is wrong now; empty: nothing."""
    refused_picture: str = ""
    """Why the last picture was refused; empty: it was not."""
    refused_queries: str = ""
    """Why those that were asked for last were refused, and the ones before stand."""

    @property
    def refusal(self) -> str:
        """What was refused and stays so until something else comes; empty: nothing."""
        return self.refused_queries or self.refused_picture


class Bridge:
    """One camera's stream, opened again for ever."""

    def __init__(
        self,
        parameters: Parameters,
        publish: Callable[[dict[str, Any]], object],
        *,
        max_pause_s: float = 5.0,
    ) -> None:
        """To be made in the event loop that runs it.

        Args:
            parameters: of the node.
            publish: given the fields of each Detection2DArray, in the event loop.
            max_pause_s: between attempts to open a broken stream again.
        """
        self.books = Books()
        self._parameters = parameters
        self._publish = publish
        self._reconnect = Reconnect(
            patience_s=math.inf, max_pause_s=max_pause_s, on_attempt=self._note_attempt
        )
        self._queries = list(parameters.queries)
        """Those that the service took."""
        self._wanted = self._queries
        self._pictures: Newest[tuple[OutgoingFrame, str]] = Newest()
        self._changes: Newest[tuple[list[str], bool]] = Newest()
        """What to ask for, and whether somebody wants it or it was asked for before."""
        self._frame_ids: dict[int, str] = {}

    @property
    def num_replaced(self) -> int:
        """Pictures that were not sent because a newer one came first."""
        return self._pictures.num_replaced

    def take_image(self, message: Any) -> None:
        """A sensor_msgs/CompressedImage, from ROS's thread; what is no picture is counted."""
        self.books.taken += 1
        try:
            frame = frame_of(message, self.books.taken)
        except ValueError as error:
            self.books.unreadable += 1
            self.books.refused_picture = str(error)
            return
        self._pictures.put((frame, self._parameters.frame_id or message.header.frame_id))

    def take_queries(self, text: str) -> None:
        """What to look for from now on, from any thread; nothing between commas changes nothing."""
        wanted = queries_of(text)
        if wanted:
            self._changes.put((wanted, True))

    async def run(self) -> None:
        """Until cancelled; a service that is not there, or goes away, is waited for.

        Raises:
            InvalidQuery: the queries of the parameters cannot be asked.
            AgentError: trying again would not help (a refused token, say).
        """
        given = self._parameters
        async with aio.Client(given.target, tls=given.tls, token=given.token) as client:
            while True:
                self.books.trouble = f"waiting for a service at {given.target}"
                await client.wait_until_ready(None)
                await self._stream(client)  # Breaks are mended inside.
                await asyncio.sleep(_AGAIN_S)

    async def _stream(self, client: aio.Client) -> None:
        watching = client.watch(
            self._outgoing(),
            self._queries,
            policy=self._parameters.policy,
            reconnect=self._reconnect,
        )
        async with watching as stream:
            changing = asyncio.create_task(self._change_queries(stream))
            try:
                async for event in stream:
                    self._note(event)
            finally:
                changing.cancel()
                await asyncio.gather(changing, return_exceptions=True)

    async def _outgoing(self) -> AsyncIterator[OutgoingFrame]:
        async for frame, frame_id in self._pictures:
            self._frame_ids[frame.sequence] = frame_id
            if len(self._frame_ids) > _MAX_UNDER_WAY:
                del self._frame_ids[next(iter(self._frame_ids))]
            yield frame

    async def _change_queries(self, stream: WatchStream) -> None:
        async for wanted, is_new in self._changes:
            self._wanted = wanted
            if is_new:
                self.books.refused_queries = ""
            await stream.set_queries(wanted)

    def _note(self, event: StreamEvent) -> None:
        if not isinstance(event, StreamStats):
            self.books.trouble = ""
        match event:
            case FrameResult():
                self._tell(event)
            case StreamStats():
                self.books.stream = event
            case StreamOpened(resumed=True, gap=gap):
                self.books.lost += gap.num_frames if gap else 0
            case QueriesAck():
                self._queries = list(event.query_ids)
            case StreamError() if event.change_id == _FIRST_CHANGE:
                raise InvalidQuery(f"parameter queries: {event.message}")
            case StreamError() if event.change_id is not None:
                self.books.refused_queries = event.message
                if self._wanted != self._queries:
                    # Else the client would ask for the refused ones again after a break.
                    self._changes.put((self._queries, False))
            case StreamError():
                self.books.errors += 1
                self.books.refused_picture = event.message

    def _note_attempt(self, attempt: Reconnecting) -> None:
        self.books.reconnects += 1
        self.books.trouble = f"no connection for {attempt.broken_s:.0f} s: {attempt.reason}"

    def _tell(self, result: FrameResult) -> None:
        frame_id = self._frame_ids.get(result.sequence, self._parameters.frame_id)
        for sequence in [one for one in self._frame_ids if one <= result.sequence]:
            del self._frame_ids[sequence]
        self._publish(to_detection2d_array(result, frame_id=frame_id))
        self.books.published += 1
        self.books.refused_picture = ""


def to_diagnostics(books: Books, num_replaced: int, stamp: Mapping[str, int]) -> dict[str, Any]:
    """Fields of a `diagnostic_msgs/msg/DiagnosticArray`; `level` is the name of its constant.

    Args:
        books: of the bridge.
        num_replaced: see `Bridge.num_replaced`.
        stamp: ROS's time now, seconds and nanoseconds.
    """
    level = "ERROR" if books.trouble else "WARN" if books.refusal else "OK"
    values = {
        "pictures taken": books.taken,
        "pictures that could not be read": books.unreadable,
        "pictures replaced by newer ones": num_replaced,
        "messages published": books.published,
        "pictures refused or failed": books.errors,
        "pictures lost with a connection": books.lost,
        "connections opened again": books.reconnects,
        "pictures superseded at the service": books.stream.superseded,
        "pictures too late at the service": books.stream.expired,
    }
    status = {
        "level": level,
        "name": "groundstream",
        "message": books.trouble or books.refusal or "answering",
        "values": [{"key": key, "value": str(value)} for key, value in values.items()],
    }
    return {"header": {"stamp": dict(stamp)}, "status": [status]}
