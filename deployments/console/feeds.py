"""Frames on their way through the console: from a browser or a video to the service and the board.

One watched stream each; knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

from deployments.console.board import BoardStream
from groundstream import aio
from groundstream.errors import AgentError
from groundstream.events import SourceEvent, SourceLost, SourceOpened, StreamEvent
from groundstream.types import OutgoingFrame
from groundstream.video.playback import play
from groundstream.video.sources import open_source
from groundstream.watch_stream import WatchStream

_logger = logging.getLogger(__name__)
_RETRY_S = 5.0

Opened = Callable[[WatchStream], object]
Heard = Callable[[StreamEvent], Awaitable[object]]


async def relay(
    client: aio.Client,
    shown: BoardStream,
    frames: AsyncIterator[OutgoingFrame],
    *,
    opened: Opened | None = None,
    heard: Heard | None = None,
) -> None:
    """Stream frames to the service until they end; the board sees all of it.

    Args:
        client: of the service.
        shown: the stream's place on the board.
        frames: numbered, in order.
        opened: given the stream once it is open, to change its queries.
        heard: given everything the service says.

    Raises:
        ServiceError: the stream broke and could not be opened again.
    """

    async def noted() -> AsyncIterator[OutgoingFrame]:
        async for frame in frames:
            shown.note_sent(frame)
            yield frame

    async with client.watch(noted(), shown.queries) as stream:
        if opened is not None:
            opened(stream)
        async for event in stream:
            shown.note_event(event)
            if heard is not None:
                await heard(event)


async def show_source(client: aio.Client, shown: BoardStream, source: str) -> None:
    """Watch a camera or video, whose address may hold a password, for as long as the console runs.

    A file starts again when it ends; what cannot be opened is tried again, and a camera that is
    lost is opened again by the source itself.
    """
    loop = asyncio.get_running_loop()

    def on_event(event: SourceEvent) -> None:
        """In the thread that reads."""
        if isinstance(event, SourceLost | SourceOpened):
            reason = event.reason if isinstance(event, SourceLost) else ""
            with contextlib.suppress(RuntimeError):  # The console has ended.
                loop.call_soon_threadsafe(setattr, shown, "error", reason)

    while True:
        try:
            opened = await asyncio.to_thread(open_source, source, on_event=on_event)
            await relay(client, shown, play(opened))
        except AgentError as error:
            _logger.warning("%s: %s; trying again in %.0f s", shown.name, error, _RETRY_S)
            shown.error = str(error)
            await asyncio.sleep(_RETRY_S)
        else:
            shown.error = ""


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
