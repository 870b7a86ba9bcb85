"""The console's WebSockets: the wall, one stream's pictures, a browser's own stream, events.

    /api/wall               every stream: a page asks, the answer is JSON and the pictures it names
    /api/streams/N/pictures one stream: its result as JSON, then the picture, for as long as it runs
    /api/watch?query=       a browser's own stream: pictures in, what the service says out as JSON
    /api/events/new         events as they come

Each is one visitor's; what it is too slow for is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
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
        """Answers every text with all streams, and with the pictures that are new to the page.

        The page asks again when it has drawn them, so that a slow one is sent fewer.
        """
        await socket.accept()
        sent: dict[int, Shown] = {}
        with contextlib.suppress(WebSocketDisconnect):
            while True:
                await socket.receive_text()
                streams = self._board.streams()
                pictures = {
                    stream.number: stream.latest
                    for stream in streams
                    if stream.latest is not None and sent.get(stream.number) is not stream.latest
                }
                sent = {s.number: s.latest for s in streams if s.latest is not None}
                await socket.send_json(
                    {
                        "streams": [stream.summary() for stream in streams],
                        "others_allowed": self._others.is_allowed,
                        "num_left_out": self._others.num_left_out,
                        "pictures": [
                            {"number": number, **_picture_view(shown)}
                            for number, shown in pictures.items()
                        ],
                    }
                )
                for shown in pictures.values():
                    await socket.send_bytes(shown.encoded)
                await asyncio.sleep(WALL_S)

    async def pictures(self, socket: WebSocket) -> None:
        """One stream until it ends: each time a result, then its picture."""
        await socket.accept()
        stream = self._stream(socket)
        if stream is None:
            await socket.close(1008, "no such stream")
            return

        async def send() -> None:
            if stream.ended_s is not None and stream.latest is not None:
                await _send_picture(socket, stream.latest)
            async for shown in stream.pictures():
                await _send_picture(socket, shown)

        with contextlib.suppress(WebSocketDisconnect):
            await _until_the_first_ends(send(), _until_gone(socket))
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


def number_from(text: str) -> int | None:
    """The stream that a path names; None: no number that a stream could have."""
    is_number = len(text) <= _MAX_DIGITS and text.isascii() and text.isdigit()
    return int(text) if is_number else None


def _picture_view(shown: Shown) -> dict[str, Any]:
    return {"age_ms": shown.age_ms, **result_view(shown.result)}


async def _send_picture(socket: WebSocket, shown: Shown) -> None:
    await socket.send_json(_picture_view(shown))
    await socket.send_bytes(shown.encoded)


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
