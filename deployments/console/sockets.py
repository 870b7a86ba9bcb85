"""The console's WebSockets: the wall, one stream's pictures, a browser's own stream, events.

    /api/wall               every stream: JSON, then the pictures it names, in the size of tiles
    /api/streams/N/pictures one stream: a result as JSON, then its picture, for as long as it runs
    /api/watch?query=       a browser's own stream: pictures in, what the service says out as JSON
    /api/events/new         events as they come

Each is one visitor's; what it is too slow for is left out. Whoever looks at pictures asks, with any
text, for each answer when the last one has come: pictures that wait on a slow line would be old
when they are seen. An answer says for how many milliseconds the question for it waited here, so
that the page knows how long the line took.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from deployments.console.board import Board, BoardStream, Origin, Shown
from deployments.console.feeds import BrowserFrames, OtherStreams, relay
from deployments.console.views import event_view, result_view
from groundstream import aio
from groundstream.errors import AgentError, Overloaded
from groundstream.events import StreamEvent
from groundstream.watch_stream import WatchStream

WALL_S = 0.4
"""Between two answers of the wall, at least: people look over many pictures, they do not film."""
_MAX_DIGITS = 18


class Sockets:
    """The handlers; everything they need is handed in."""

    def __init__(self, client: aio.Client, board: Board, others: OtherStreams) -> None:
        self._client = client
        self._board = board
        self._others = others

    async def wall(self, socket: WebSocket) -> None:
        """Every answer has all streams, and the pictures that are new to the page."""
        await socket.accept()
        asking = _Asking(socket)

        async def send() -> None:
            sent: dict[int, Shown] = {}
            while True:
                asked_s = await asking.next()
                streams = self._board.streams()
                pictures = {
                    stream.number: stream.latest
                    for stream in streams
                    if stream.latest is not None and sent.get(stream.number) is not stream.latest
                }
                sent = {s.number: s.latest for s in streams if s.latest is not None}
                tiles = await asyncio.gather(*(shown.tile() for shown in pictures.values()))
                await socket.send_json(
                    {
                        "waited_ms": _since_ms(asked_s),
                        "streams": [stream.summary() for stream in streams],
                        "others_allowed": self._others.is_allowed,
                        "num_left_out": self._others.num_left_out,
                        "pictures": [
                            {"number": number, **_picture_view(shown)}
                            for number, shown in pictures.items()
                        ],
                    }
                )
                for tile in tiles:
                    await socket.send_bytes(tile)
                await asyncio.sleep(WALL_S)

        with contextlib.suppress(WebSocketDisconnect):
            await _until_the_first_ends(send(), asking.listen())

    async def pictures(self, socket: WebSocket) -> None:
        """One stream until it ends: each time a result, then its picture in full size."""
        await socket.accept()
        stream = self._stream(socket)
        if stream is None:
            await socket.close(1008, "no such stream")
            return

        asking = _Asking(socket)

        async def send() -> None:
            pictures, last = stream.pictures(), None
            while True:
                asked_s = await asking.next()
                # One that has ended still shows its last.
                shown = await anext(pictures, None) or stream.latest
                if shown is None or shown is last:
                    return
                await socket.send_json({"waited_ms": _since_ms(asked_s), **_picture_view(shown)})
                await socket.send_bytes(shown.encoded)
                last = shown

        with contextlib.suppress(WebSocketDisconnect):
            await _until_the_first_ends(send(), asking.listen())
            await socket.close()

    async def events(self, socket: WebSocket) -> None:
        """Events as they come, several in one message where the page is slow."""
        await socket.accept()

        async def send() -> None:
            async for events in self._board.log.follow():
                await socket.send_json({"events": [event.view() for event in events]})

        with contextlib.suppress(WebSocketDisconnect):
            await _until_the_first_ends(send(), _until_gone(socket))

    async def watch(self, socket: WebSocket) -> None:
        """A browser's own stream."""
        queries = tuple(text for text in socket.query_params.getlist("query") if text.strip())
        await socket.accept()
        try:
            shown = self._board.open_numbered(
                "browser", queries, title="the camera of a browser", origin=Origin.BROWSER
            )
        except Overloaded as error:
            await _say_and_close(socket, error)
            return
        try:
            await self._relay_browser(socket, shown, queries)
        except AgentError as error:
            await _say_and_close(socket, error)
        finally:
            self._board.end(shown)

    async def _relay_browser(
        self, socket: WebSocket, shown: BoardStream, queries: tuple[str, ...]
    ) -> None:
        frames = BrowserFrames()
        streams: asyncio.Future[WatchStream] = asyncio.get_running_loop().create_future()

        async def hear(event: StreamEvent) -> None:
            view = event_view(event)
            if view is not None:
                await socket.send_json(view)

        async def read() -> None:
            stream = await streams
            while (message := await socket.receive())["type"] != "websocket.disconnect":
                if (encoded := message.get("bytes")) is not None:
                    await frames.put(encoded)
                elif text := (message.get("text") or "").strip():
                    # One question replaces those there were.
                    await stream.set_queries([text])
                    shown.queries = (text,)

        with contextlib.suppress(WebSocketDisconnect):
            await _until_the_first_ends(
                relay(
                    self._client, self._board, shown, aiter(frames), queries,
                    opened=streams.set_result, heard=hear,
                ),
                read(),
            )  # fmt: skip

    def _stream(self, socket: WebSocket) -> BoardStream | None:
        number = number_from(socket.path_params["number"])
        return None if number is None else self._board.get(number)


class _Asking:
    """A page that asks for answers one by one; what it asks meanwhile counts once."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket
        self._asked_s: asyncio.Queue[float] = asyncio.Queue(maxsize=1)

    async def listen(self) -> None:
        """Take what it asks, until it is gone."""
        while (await self._socket.receive())["type"] != "websocket.disconnect":
            if self._asked_s.empty():
                self._asked_s.put_nowait(time.monotonic())

    async def next(self) -> float:
        """Until it asks; when it did, monotonic clock."""
        return await self._asked_s.get()


def number_from(text: str) -> int | None:
    """The stream that a path names; None: no number that a stream could have."""
    is_number = len(text) <= _MAX_DIGITS and text.isascii() and text.isdigit()
    return int(text) if is_number else None


def _picture_view(shown: Shown) -> dict[str, Any]:
    return {"age_ms": shown.age_ms, **result_view(shown.result)}


def _since_ms(moment_s: float) -> float:
    return (time.monotonic() - moment_s) * 1e3


async def _say_and_close(socket: WebSocket, error: AgentError) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await socket.send_json(
            {"kind": "error", "code": type(error).__name__, "message": str(error)}
        )
        await socket.close(1011)


async def _until_gone(socket: WebSocket) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _until_the_first_ends(*work: Coroutine[Any, Any, None]) -> None:
    """Run side by side; when one ends the others are cancelled, and what it raised is raised."""
    tasks = [asyncio.ensure_future(piece) for piece in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
