"""The console's pages and its small API; a client of the service like any other.

    GET  /                        the page, /static/ its files
    GET  /api/service             the service in sums, streams open through this console, drafts
    POST /api/ask?query=&task=    one picture (the body), one question
    WS   /api/watch?query=        a browser's own stream: pictures in, events out as JSON
    WS   /api/streams/N/pictures  a browser observes: answer (text) and its picture (binary)
    WS   /api/others/N/pictures   the same for a stream of any client, where the service allows it

An error is `{"error": message}` under the status that fits. Knows neither Ray nor the ingress.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles
from starlette.websockets import WebSocket, WebSocketDisconnect

from deployments.admission import EvictingLimit
from deployments.console.board import Board, BoardStream, Shown
from deployments.console.feeds import BrowserFrames, relay, show_source
from deployments.console.guard import Guard
from deployments.console.views import event_view, open_stream_view, result_view, service_view
from groundstream import aio
from groundstream.errors import AgentError, FrameTooLarge, InvalidRequest, Overloaded
from groundstream.events import StreamEvent
from groundstream.locations import shown_location
from groundstream.rpc_errors import ServiceError
from groundstream.types import Capabilities, Query, TaskKind
from groundstream.watch_stream import WatchStream

_MAX_DIGITS = 18
_STATIC = Path(__file__).parent / "static"
_HTTP_BY_CODE = {
    "FRAME_TOO_LARGE": 413,
    "INVALID_FRAME": 415,
    "FRAME_TOO_COSTLY": 415,
    "INVALID_QUERY": 422,
    "INVALID_BOXES": 422,
    "INVALID_ARGUMENT": 400,
    "UNAUTHENTICATED": 502,  # the console's own credentials, not the visitor's
    "QUOTA_EXCEEDED": 429,
    "OVERLOADED": 429,
    "STAGE_UNAVAILABLE": 503,
}


@dataclass(frozen=True)
class ConsoleSettings:
    """What a console shows and takes."""

    sources: Sequence[str] = ()
    """Cameras and videos of this machine that are streamed while it runs."""
    queries: Sequence[str] = ()
    """What is looked for in them."""
    key: str | None = None
    """See `Guard`."""
    hosts: frozenset[str] | None = None
    max_upload_bytes: int = 16_777_216
    max_streams: int = 16
    ask_timeout_s: float = 60.0
    upload_s: float = 30.0
    """A picture that is uploaded has come by then."""
    max_uploads: int = 16
    """At a time; for one more, the oldest ends."""


class Console:
    """The handlers; everything they need is handed in."""

    def __init__(self, client: aio.Client, settings: ConsoleSettings) -> None:
        self._client = client
        self._settings = settings
        self._board = Board(max_streams=settings.max_streams)
        self._capabilities: Capabilities | None = None
        self._uploads = EvictingLimit(settings.max_uploads, "pictures are being uploaded")

    async def page(self, _request: Request) -> Response:
        """The page."""
        return FileResponse(_STATIC / "index.html")

    async def service(self, _request: Request) -> Response:
        """What there is to see, but for pictures."""
        try:
            if self._capabilities is None:
                self._capabilities = await self._client.capabilities()
            service = service_view(self._capabilities, await self._client.stats())
            others = await self._others()
        except AgentError as error:
            # It may come back as another version.
            self._capabilities = None
            return _failure(error)
        drafts = vars(self._board.drafts)
        return JSONResponse(
            {
                "service": service,
                "drafts": drafts,
                "streams": self._board.summaries(),
                "others": others,
            }
        )

    async def ask(self, request: Request) -> Response:
        """One picture, one question."""
        try:
            query = _query(request)
            image = await self._body(request)
            result = await self._client.ground(
                image, [query], timeout_s=self._settings.ask_timeout_s
            )
        except AgentError as error:
            return _failure(error)
        for answer in result.results:
            self._board.drafts.add(answer)
        return JSONResponse(result_view(result))

    async def watch(self, socket: WebSocket) -> None:
        """A browser's own stream."""
        queries = tuple(text for text in socket.query_params.getlist("query") if text.strip())
        await socket.accept()
        try:
            shown = self._board.open("browser", queries)
        except Overloaded as error:
            await _say_and_close(socket, error)
            return
        try:
            await self._relay_browser(socket, shown)
        except AgentError as error:
            await _say_and_close(socket, error)
        finally:
            self._board.close(shown)

    async def pictures(self, socket: WebSocket) -> None:
        """A browser observes its own stream."""
        await socket.accept()
        number = _number(socket)
        shown = None if number is None else self._board.get(number)
        if shown is None:
            await socket.close(1008, "no such stream")
            return

        await _show(socket, shown.pictures())

    async def others_pictures(self, socket: WebSocket) -> None:
        """A browser observes a stream of any client."""
        await socket.accept()
        number = _number(socket)
        if number is None:
            await socket.close(1008, "no such stream")
            return

        async def pictures() -> AsyncIterator[Shown]:
            async for seen in self._client.observe(number):
                yield Shown(seen.encoded, result_view(seen.result))

        try:
            await _show(socket, pictures())
        except AgentError as error:
            await _say_and_close(socket, error)

    @contextlib.asynccontextmanager
    async def running(self, _app: Starlette) -> AsyncIterator[None]:
        """Streams the sources that were named; closes the connection in the end."""
        queries = tuple(self._settings.queries)
        tasks = []
        for source in self._settings.sources:
            stream = self._board.open(shown_location(source), queries)
            tasks.append(asyncio.create_task(show_source(self._client, stream, source)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._client.close()

    async def _others(self) -> list[dict[str, Any]] | None:
        """Streams at the front end; None: the service does not let streams be observed."""
        try:
            return [open_stream_view(stream) for stream in await self._client.streams()]
        except InvalidRequest:
            return None

    async def _relay_browser(self, socket: WebSocket, shown: BoardStream) -> None:
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
                relay(self._client, shown, aiter(frames), opened=streams.set_result, heard=hear),
                read(),
            )

    async def _body(self, request: Request) -> bytes:
        """What was uploaded; reading stops where it is too much, or takes too long."""
        limit, limit_s = self._settings.max_upload_bytes, self._settings.upload_s

        async def read() -> bytes:
            body = bytearray()
            async for chunk in request.stream():
                body += chunk
                if len(body) > limit:
                    raise FrameTooLarge(
                        f"the picture has more than {limit} bytes; send a smaller one"
                    )
            return bytes(body)

        whose = "" if request.client is None else request.client.host
        try:
            async with asyncio.timeout(limit_s):
                return await self._uploads.run(whose, read())
        except TimeoutError:
            raise InvalidRequest(
                f"the picture did not come within {limit_s:g} s; send it at once"
            ) from None


def build(client: aio.Client, settings: ConsoleSettings) -> Starlette:
    """The web application; `client` is closed with it."""
    console = Console(client, settings)
    return Starlette(
        routes=[
            Route("/", console.page),
            Route("/api/service", console.service),
            Route("/api/ask", console.ask, methods=["POST"]),
            WebSocketRoute("/api/watch", console.watch),
            WebSocketRoute("/api/streams/{number}/pictures", console.pictures),
            WebSocketRoute("/api/others/{number}/pictures", console.others_pictures),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ],
        middleware=[Middleware(Guard, key=settings.key, hosts=settings.hosts)],
        lifespan=console.running,
    )


def _number(socket: WebSocket) -> int | None:
    """The stream that a path names; None: no number that a stream could have."""
    text = socket.path_params["number"]
    is_number = len(text) <= _MAX_DIGITS and text.isascii() and text.isdigit()
    return int(text) if is_number else None


def _query(request: Request) -> Query:
    text = request.query_params.get("query", "")
    name = request.query_params.get("task", TaskKind.DETECT.value)
    try:
        return Query(text, task=TaskKind(name))
    except ValueError:
        raise InvalidRequest(f"there is no task {name!r}") from None


def _failure(error: AgentError) -> Response:
    otherwise = 502 if isinstance(error, ServiceError) else 500
    status = _HTTP_BY_CODE.get(error.code, otherwise)
    return JSONResponse({"error": str(error)}, status)


async def _say_and_close(socket: WebSocket, error: AgentError) -> None:
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        await socket.send_json(
            {"kind": "error", "code": type(error).__name__, "message": str(error)}
        )
        await socket.close(1011)


async def _show(socket: WebSocket, pictures: AsyncIterator[Shown]) -> None:
    """Send pictures until they end or the visitor goes; a slow visitor is sent fewer."""

    async def send() -> None:
        async for picture in pictures:
            await socket.send_json(picture.result)
            await socket.send_bytes(picture.encoded)

    with contextlib.suppress(WebSocketDisconnect):
        await _until_the_first_ends(send(), _until_gone(socket))
        await socket.close()


async def _until_gone(socket: WebSocket) -> None:
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass


async def _until_the_first_ends(*work: Any) -> None:
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
