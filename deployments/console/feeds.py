"""Frames on their way through the console: from a browser, a camera or another client's stream to
the board, and to the service where it does not have them.

One stream each; knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from deployments.console.board import Board, BoardStream, Origin
from groundstream import aio
from groundstream.cameras.pacing import PacedSource
from groundstream.cameras.settings import CameraSettings
from groundstream.errors import AgentError, InvalidRequest, Overloaded
from groundstream.events import (
    OpenStreamInfo,
    Reconnecting,
    SourceEvent,
    SourceLost,
    SourceOpened,
    StreamEvent,
)
from groundstream.locations import shown_location
from groundstream.types import OutgoingFrame, Query, StreamPolicy
from groundstream.video.playback import play
from groundstream.video.sources import open_source
from groundstream.watch_stream import Reconnect, WatchStream

_logger = logging.getLogger(__name__)
_RETRY_S = 5.0
_LIST_S = 1.0
_REFUSED_S = 10.0
_OWN_S = 0.3
"""By then a stream of this console has been given the result that an observer was given."""

Opened = Callable[[WatchStream], object]
Heard = Callable[[StreamEvent], Awaitable[object]]


async def relay(
    client: aio.Client,
    board: Board,
    shown: BoardStream,
    frames: AsyncIterator[OutgoingFrame],
    queries: tuple[Query | str, ...],
    *,
    policy: StreamPolicy | None = None,
    reconnect: Reconnect | None = None,
    opened: Opened | None = None,
    heard: Heard | None = None,
) -> None:
    """Stream frames to the service until they end; the board sees all of it.

    Args:
        client: of the service.
        board: where the stream is shown.
        shown: the stream's place on it.
        frames: numbered, in order.
        queries: what to look for in them.
        policy: how to answer.
        reconnect: what to do when the connection breaks.
        opened: given the stream once it is open, to change its queries.
        heard: given everything the service says.

    Raises:
        ServiceError: the stream broke and could not be opened again.
    """

    async def noted() -> AsyncIterator[OutgoingFrame]:
        async for frame in frames:
            shown.note_sent(frame)
            yield frame

    async with client.watch(noted(), queries, policy=policy, reconnect=reconnect) as stream:
        if opened is not None:
            opened(stream)
        async for event in stream:
            board.note_own(event)
            shown.note_event(event)
            if heard is not None:
                await heard(event)


async def show_camera(
    client: aio.Client, board: Board, shown: BoardStream, camera: CameraSettings
) -> None:
    """Watch a camera or video, whose address may hold a password, until its source has ended.

    What cannot be opened is tried again, and so is a service that is away; a camera that is lost is
    opened again by the source itself.
    """
    loop = asyncio.get_running_loop()

    def on_event(event: SourceEvent) -> None:
        """In the thread that reads."""
        if isinstance(event, SourceLost):
            _logger.warning("%s: %s; trying again", shown.name, event.reason)
            with contextlib.suppress(RuntimeError):  # The console has ended.
                loop.call_soon_threadsafe(lambda: shown.say(event.reason, is_lost=True))
        elif isinstance(event, SourceOpened):
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(setattr, shown, "is_lost", False)

    def on_attempt(broken: Reconnecting) -> None:
        shown.say(f"the service is away: {broken.reason}", is_lost=True)

    policy = StreamPolicy(mode=camera.mode, max_age_ms=camera.max_age_ms)
    reconnect = Reconnect(patience_s=math.inf, max_pause_s=_RETRY_S, on_attempt=on_attempt)
    while True:
        try:
            source = await asyncio.to_thread(open_source, camera.source, on_event=on_event)
            paced = PacedSource(source, fps=camera.fps, repeat=camera.repeat)
            shown.begin(board.places.of(shown.name))
            try:
                await relay(
                    client, board, shown, play(paced), camera.queries,
                    policy=policy, reconnect=reconnect,
                )  # fmt: skip
            finally:
                paced.stop()
            return
        except AgentError as error:
            reason = shown_location(str(error))
            _logger.warning("%s: %s; trying again in %.0f s", shown.name, reason, _RETRY_S)
            shown.say(reason, is_lost=True)
            await asyncio.sleep(_RETRY_S)


class OtherStreams:
    """The streams of other clients, looked on at for as long as the console runs."""

    def __init__(self, client: aio.Client, board: Board) -> None:
        """Nothing is looked at yet.

        Args:
            client: of the service.
            board: where they are shown.
        """
        self.is_allowed = True
        """False: the service lets nobody look on."""
        self._client = client
        self._board = board
        self._shown: dict[int, BoardStream] = {}
        """By their number at the service."""
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._own: set[int] = set()
        """Those of this console, which are on the board already."""
        self._without_room: set[int] = set()

    @property
    def num_left_out(self) -> int:
        """Streams for which the board has no room."""
        return len(self._without_room)

    async def run(self) -> None:
        """Look on at every stream there is, until cancelled."""
        try:
            while True:
                await asyncio.sleep(await self._look())
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _look(self) -> float:
        """Begin with those that are new; says how long to wait before the next look."""
        try:
            listed = await self._client.streams()
        except InvalidRequest:
            self.is_allowed = False
            return _REFUSED_S
        except AgentError:
            return _RETRY_S
        self.is_allowed = True
        numbers = {info.number for info in listed}
        self._own &= numbers
        self._without_room &= set() if self._board.has_room else numbers
        self._tasks = {number: task for number, task in self._tasks.items() if not task.done()}
        for info in listed:
            if (stream := self._shown.get(info.number)) is not None:
                stream.note_listed(info)
            elif info.number not in self._tasks.keys() | self._own | self._without_room:
                self._tasks[info.number] = asyncio.create_task(self._look_on(info))
        return _LIST_S

    async def _look_on(self, info: OpenStreamInfo) -> None:
        """At one stream, until it ends or turns out to be this console's own."""
        board, stream = self._board, None
        try:
            async for seen in self._client.observe(info.number):
                if stream is None:
                    await asyncio.sleep(_OWN_S)
                if board.is_own(seen.result):
                    self._own.add(info.number)
                    if stream is not None:
                        board.remove(stream)
                        stream = None
                    return
                if stream is None:
                    stream = board.open(
                        f"stream-{info.number}", info.query_ids,
                        title="another client's stream", origin=Origin.OTHER,
                    )  # fmt: skip
                    stream.note_listed(info)
                    self._shown[info.number] = stream
                stream.note_observed(seen)
        except Overloaded:
            self._without_room.add(info.number)
        except AgentError as error:
            _logger.info("stream %d is looked on at no more: %s", info.number, error)
        finally:
            self._shown.pop(info.number, None)
            if stream is not None:
                board.end(stream)


class BrowserFrames:
    """Pictures as a browser sends them, numbered; two may wait, then the browser has to."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[bytes] = asyncio.Queue(maxsize=2)

    async def put(self, encoded: bytes) -> None:
        """One picture; returns when there was room for it."""
        await self._waiting.put(encoded)

    async def __aiter__(self) -> AsyncIterator[OutgoingFrame]:
        for number in itertools.count(1):
            encoded = await self._waiting.get()
            yield OutgoingFrame(encoded, number, capture_time_ns=time.time_ns())
