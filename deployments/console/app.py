"""The console's pages and its small API; a client of the service like any other.

    GET  /                            the page, /static/ its files
    GET  /api/service                 the service in sums, streams with their books, drafts
    POST /api/ask?query=&task=        one picture (the body), one question
    GET  /api/streams/N/places        zones and lines of a stream's camera
    PUT, DELETE /api/streams/N/zones/NAME, /api/streams/N/lines/NAME
    GET  /api/events?before=&camera=&kind=&limit=   events of the last day, the newest first

and the WebSockets of `deployments/console/sockets.py`. An error is `{"error": message}` under the
status that fits. Knows neither Ray nor the ingress.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.staticfiles import StaticFiles

from deployments.admission import EvictingLimit
from deployments.console.board import Board, BoardStream
from deployments.console.event_log import EventLog
from deployments.console.feeds import OtherStreams, show_camera
from deployments.console.guard import Guard
from deployments.console.places import PlaceStore, line_from_fields, zone_from_fields
from deployments.console.sockets import Sockets, number_from
from deployments.console.views import places_view, result_view, service_view
from groundstream import aio
from groundstream.cameras.place_file import Places
from groundstream.cameras.settings import CameraSettings
from groundstream.checks import check_text
from groundstream.errors import (
    AgentError,
    EventsError,
    FrameTooLarge,
    InvalidRequest,
    SettingsError,
)
from groundstream.locations import shown_location
from groundstream.rpc_errors import ServiceError
from groundstream.scene_events import EventKind
from groundstream.types import Capabilities, Query, TaskKind
from groundstream.zones import Line, Zone

_MAX_PLACE_BYTES = 65_536
"""Of a zone or line as JSON."""
_MAX_LISTED = 500
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

    cameras: Mapping[str, CameraSettings] = field(default_factory=dict)
    """Cameras and videos that are opened by this machine while the console runs, by name."""
    place_file: Path | None = None
    """Where zones and lines that are drawn are kept; None: in memory."""
    event_file: Path | None = None
    """Events are added to it as lines of JSON; None: they are in memory alone."""
    key: str | None = None
    """See `Guard`."""
    hosts: frozenset[str] | None = None
    max_upload_bytes: int = 16_777_216
    max_streams: int = 16
    """Open at a time beside `cameras`: of browsers and of other clients."""
    ask_timeout_s: float = 60.0
    upload_s: float = 30.0
    """A picture that is uploaded has come by then."""
    max_uploads: int = 16
    """At a time; for one more, the oldest ends."""


def cameras_from_sources(
    sources: Sequence[str], queries: Sequence[str], *, taken: Collection[str] = ()
) -> dict[str, CameraSettings]:
    """Cameras named after their sources; files are played again and again.

    Args:
        sources: files, folders, URLs, `camera:0`.
        queries: what is looked for in each.
        taken: names of other cameras.

    Raises:
        InvalidQuery: one is no text that UTF-8 can write.
    """
    cameras: dict[str, CameraSettings] = {}
    for source in sources:
        stem = re.sub(r"[^A-Za-z0-9]+", "-", _last_part(source)).strip("-")[:48] or "camera"
        name, count = stem, 1
        while name in cameras or name in taken:
            count += 1
            name = f"{stem}-{count}"
        wanted = tuple(Query(check_text(text, "the query")) for text in queries)
        cameras[name] = CameraSettings(name, source, wanted, repeat=True)
    return cameras


class Console:
    """The handlers; everything they need is handed in."""

    def __init__(self, client: aio.Client, settings: ConsoleSettings) -> None:
        """Nothing is streamed yet.

        Raises:
            SettingsError: a file of places or of events cannot be used.
        """
        self._client = client
        self._settings = settings
        known = {name: Places(c.zones, c.lines) for name, c in settings.cameras.items()}
        self._log = EventLog(settings.event_file)
        self._places = PlaceStore(known, settings.place_file)
        max_streams = len(settings.cameras) + settings.max_streams
        self._board = Board(max_streams=max_streams, log=self._log, places=self._places)
        self._others = OtherStreams(client, self._board)
        self._capabilities: Capabilities | None = None
        self._uploads = EvictingLimit(settings.max_uploads, "pictures are being uploaded")
        self.sockets = Sockets(client, self._board, self._others)

    async def page(self, _request: Request) -> Response:
        """The page."""
        return FileResponse(_STATIC / "index.html")

    async def service(self, _request: Request) -> Response:
        """What there is to see, but for pictures and events."""
        try:
            if self._capabilities is None:
                self._capabilities = await self._client.capabilities()
            service = service_view(self._capabilities, await self._client.stats())
        except AgentError as error:
            # It may come back as another version.
            self._capabilities = None
            return _failure(error)
        return JSONResponse(
            {
                "service": service,
                "drafts": vars(self._board.drafts),
                "streams": [stream.summary() for stream in self._board.streams()],
                "others_allowed": self._others.is_allowed,
                "events": {
                    "by_camera": self._log.counts(),
                    "left_out": self._log.num_left_out,
                    "unwritten": self._log.num_unwritten,
                },
            }
        )

    async def ask(self, request: Request) -> Response:
        """One picture, one question."""
        try:
            query = _query(request)
            image = await self._picture(request)
            result = await self._client.ground(
                image, [query], timeout_s=self._settings.ask_timeout_s
            )
        except AgentError as error:
            return _failure(error)
        for answer in result.results:
            self._board.drafts.add(answer)
        return JSONResponse(result_view(result))

    async def events(self, request: Request) -> Response:
        """Events of the last day, the newest first."""
        params = request.query_params
        try:
            limit, before = _whole(params.get("limit", "100")), params.get("before")
            kind = params.get("kind", "")
            if kind and kind not in EventKind.__members__:
                raise InvalidRequest(f"there is no kind of event {kind!r}")
            events = self._log.newest(
                min(limit, _MAX_LISTED),
                before=None if before is None else _whole(before),
                camera=params.get("camera", ""),
                kind=kind,
            )
        except AgentError as error:
            return _failure(error)
        return JSONResponse(
            {"events": [event.view() for event in events], "left_out": self._log.num_left_out}
        )

    async def places(self, request: Request) -> Response:
        """Zones and lines of a stream's camera."""
        stream = self._stream(request)
        if stream is None:
            return _no_stream()
        view = places_view(stream.name, self._places.of(stream.name))
        return JSONResponse({"version": stream.places_version, **view})

    async def put_zone(self, request: Request) -> Response:
        """Draw a zone, or draw it anew."""
        return await self._change(request, lambda name, fields: zone_from_fields(name, fields))

    async def put_line(self, request: Request) -> Response:
        """Draw a line, or draw it anew."""
        return await self._change(request, lambda name, fields: line_from_fields(name, fields))

    async def remove_zone(self, request: Request) -> Response:
        """Take a zone away."""
        return await self._remove(request, Zone)

    async def remove_line(self, request: Request) -> Response:
        """Take a line away."""
        return await self._remove(request, Line)

    @contextlib.asynccontextmanager
    async def running(self, _app: Starlette) -> AsyncIterator[None]:
        """Streams the cameras, looks on at others; closes the connection in the end."""
        writing = asyncio.create_task(self._log.write())
        tasks = [asyncio.create_task(self._others.run())]
        for name, camera in self._settings.cameras.items():
            stream = self._board.open(
                name,
                tuple(query.name for query in camera.queries),
                title=_title(camera.source),
                settings=camera.events,
            )
            tasks.append(asyncio.create_task(self._run_camera(stream, camera)))
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._log.close()
            await writing
            await self._client.close()

    async def _run_camera(self, stream: BoardStream, camera: CameraSettings) -> None:
        try:
            await show_camera(self._client, self._board, stream, camera)
        finally:
            self._board.end(stream)

    def _stream(self, request: Request) -> BoardStream | None:
        number = number_from(request.path_params["number"])
        return None if number is None else self._board.get(number)

    async def _change(
        self, request: Request, read: Callable[[str, object], Zone | Line]
    ) -> Response:
        stream = self._stream(request)
        if stream is None:
            return _no_stream()
        try:
            body = await self._body(request, _MAX_PLACE_BYTES, "the zone or line")
            place = read(request.path_params["name"], _parsed(body))
            await self._places.put(stream.name, place)
        except AgentError as error:
            return _failure(error)
        return await self.places(request)

    async def _remove(self, request: Request, kind: type[Zone] | type[Line]) -> Response:
        stream = self._stream(request)
        if stream is None:
            return _no_stream()
        try:
            await self._places.remove(stream.name, kind, request.path_params["name"])
        except AgentError as error:
            return _failure(error)
        return await self.places(request)

    async def _picture(self, request: Request) -> bytes:
        whose = "" if request.client is None else request.client.host
        async with self._uploads.taken((whose,)):
            return await self._body(request, self._settings.max_upload_bytes, "the picture")

    async def _body(self, request: Request, limit: int, what: str) -> bytes:
        """What was uploaded; reading stops where it is too much, or takes too long.

        Raises:
            FrameTooLarge: it is more than `limit` bytes.
            InvalidRequest: it did not come in time.
        """
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.upload_s):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        raise FrameTooLarge(
                            f"{what} has more than {limit} bytes; send a smaller one"
                        )
        except TimeoutError:
            raise InvalidRequest(
                f"{what} did not come within {self._settings.upload_s:g} s; send it at once"
            ) from None
        return bytes(body)


def build(client: aio.Client, settings: ConsoleSettings) -> Starlette:
    """The web application; `client` is closed with it.

    Raises:
        SettingsError: a file of places or of events cannot be used.
    """
    console = Console(client, settings)
    sockets, stream = console.sockets, "/api/streams/{number}"
    return Starlette(
        routes=[
            Route("/", console.page),
            Route("/api/service", console.service),
            Route("/api/ask", console.ask, methods=["POST"]),
            Route("/api/events", console.events),
            Route(f"{stream}/places", console.places),
            Route(f"{stream}/zones/{{name}}", console.put_zone, methods=["PUT"]),
            Route(f"{stream}/lines/{{name}}", console.put_line, methods=["PUT"]),
            Route(f"{stream}/zones/{{name}}", console.remove_zone, methods=["DELETE"]),
            Route(f"{stream}/lines/{{name}}", console.remove_line, methods=["DELETE"]),
            WebSocketRoute("/api/wall", sockets.wall),
            WebSocketRoute("/api/watch", sockets.watch),
            WebSocketRoute("/api/events/new", sockets.events),
            WebSocketRoute(f"{stream}/pictures", sockets.pictures),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ],
        middleware=[Middleware(Guard, key=settings.key, hosts=settings.hosts)],
        lifespan=console.running,
    )


def _query(request: Request) -> Query:
    text = request.query_params.get("query", "")
    name = request.query_params.get("task", TaskKind.DETECT.value)
    try:
        return Query(text, task=TaskKind(name))
    except ValueError:
        raise InvalidRequest(f"there is no task {name!r}") from None


def _whole(text: str) -> int:
    number = number_from(text)
    if number is None:
        raise InvalidRequest(f"{text[:20]!r} is no number")
    return number


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidRequest("the body is no JSON") from None


def _last_part(source: str) -> str:
    """What a source may be called: the last name in it, without a password or an extension."""
    shown = shown_location(source).split("?")[0].rstrip("/")
    return Path(shown.rpartition("/")[2] or shown).stem


def _title(source: str) -> str:
    shown = shown_location(source)
    return shown if "://" in shown else os.path.normpath(shown)


def _no_stream() -> Response:
    return JSONResponse({"error": "there is no such stream"}, 404)


def _failure(error: AgentError) -> Response:
    otherwise = 502 if isinstance(error, ServiceError) else 500
    if isinstance(error, EventsError):
        otherwise = 422
    elif isinstance(error, SettingsError):
        otherwise = 507  # A file of this machine takes nothing.
    status = _HTTP_BY_CODE.get(error.code, otherwise)
    return JSONResponse({"error": str(error)}, status)
