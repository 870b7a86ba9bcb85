"""The console over a real service with fake stages: real HTTP, real WebSockets, real gRPC."""

from __future__ import annotations

import asyncio
import contextlib
import io
import socket
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import uvicorn
from PIL import Image

from agent.server_settings import ServerSettings
from deployments.console import connections, feeds
from deployments.console.app import ConsoleSettings, build, cameras_from_sources
from deployments.console.board import Board, Origin, Shown
from deployments.console.connections import PatientProtocol
from deployments.console.event_log import EventLog
from deployments.console.places import PlaceStore
from deployments.console.server import ServiceAccess, run_console
from deployments.console.views import books_view, service_view
from groundstream import aio
from groundstream.cameras.settings import CameraSettings
from groundstream.errors import Overloaded, SettingsError, SourceError
from groundstream.events import StreamStats
from groundstream.types import Query
from groundstream.watch_stream import WatchStream
from tests.in_process import frames, running_service
from tests.pictures import encoded_image
from tests.unit.test_observers import OBSERVED

PORT_HOSTS = frozenset({"127.0.0.1"})
VENDOR = Path(__file__).parents[2] / "deployments" / "console" / "static" / "vendor"


@contextlib.asynccontextmanager
async def running_console(
    target: str, settings: ConsoleSettings | None = None, *, port: int = 0
) -> AsyncIterator[str]:
    """A console of a service; its address. At port 0: anywhere."""
    settings = settings or ConsoleSettings(hosts=PORT_HOSTS)
    config = uvicorn.Config(
        build(aio.Client(target), settings),
        port=port,
        http=PatientProtocol,
        ws="websockets-sansio",
        log_level="warning",
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await task


@contextlib.asynccontextmanager
async def visiting(settings: ConsoleSettings | None = None) -> AsyncIterator[aiohttp.ClientSession]:
    """A browser's view of a console that is connected to a fake service."""
    async with (
        running_service() as service,
        running_console(service.target, settings) as url,
        aiohttp.ClientSession(url) as session,
    ):
        yield session


def picture(size: tuple[int, int] = (64, 48)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


def size_of(encoded: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(encoded)).size


async def test_the_page_and_its_files_are_served_under_a_strict_policy() -> None:
    async with visiting() as browser:
        async with browser.get("/") as page:
            assert page.status == 200
            policy = page.headers["content-security-policy"]
            text = await page.text()
        for name in ("console.mjs", "console.css", "vendor/htm-preact-3.1.1.mjs"):
            async with browser.get(f"/static/{name}") as file:
                assert file.status == 200
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    # The policy would block them, and the page with them.
    assert "<style" not in text
    assert "onclick" not in text.lower()


async def test_a_question_about_a_picture() -> None:
    async with visiting() as browser:
        params = {"query": "dog", "task": "DETECT"}
        async with browser.post("/api/ask", params=params, data=encoded_image()) as reply:
            assert reply.status == 200
            result = await reply.json()
        async with browser.get("/api/service") as reply:
            news = await reply.json()
    answer = result["answers"][0]
    assert answer["detections"][0]["label"] == "dog"
    assert len(answer["detections"][0]["box"]) == 4
    assert news["service"]["model"] == "fake"
    assert news["service"]["frames"]["received"] == 1
    assert news["drafts"]["num_answers"] == 1


@pytest.mark.parametrize(
    ("params", "body", "status", "says"),
    [
        ({"query": "dog"}, b"no picture", 415, "image"),
        ({"query": "  "}, picture(), 422, "query"),
        ({"query": "dog", "task": "FLY"}, picture(), 400, "FLY"),
        ({"query": "dog"}, b"x" * 200_001, 413, "200000 bytes"),
    ],
)
async def test_a_bad_question_is_told_why(params, body, status, says) -> None:
    settings = ConsoleSettings(max_upload_bytes=200_000)
    async with visiting(settings) as browser:
        async with browser.post("/api/ask", params=params, data=body) as reply:
            assert reply.status == status
            assert says in (await reply.json())["error"]
        async with browser.post("/api/ask", params={"query": "dog"}, data=picture()) as reply:
            assert reply.status == 200


async def test_a_browsers_stream_and_somebody_who_looks_on() -> None:
    sent = encoded_image(3)
    async with visiting() as browser:
        own = await _socket(browser, "/api/watch?query=dog")
        await own.send_bytes(sent)
        assert (await _next(own, "keyframe"))["reason"] == "FIRST"
        async with browser.get("/api/service") as reply:
            streams = (await reply.json())["streams"]
        assert [stream["queries"] for stream in streams] == [["dog"]]
        other = await _socket(browser, f"/api/streams/{streams[0]['number']}/pictures")
        about, image = await _look(other)
        assert about["sequence"] == 1
        assert image == sent

        await own.send_str("cat")
        await own.send_bytes(encoded_image(4))
        answer = (await _next(own, "keyframe"))["answers"][0]
        assert answer["query"] == "cat"
        await own.close()
        async with asyncio.timeout(10):
            for _ in range(2):  # the last picture, and that there is no more
                await other.send_str("next")
            async for _picture in other:
                await other.send_str("next")
        assert other.closed
        (ended,) = (await wall(browser))["streams"]
        assert ended["state"] == "ENDED"


async def test_a_source_of_the_machine_is_streamed(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(encoded_image(number))
    settings = ConsoleSettings(cameras_from_sources([str(tmp_path)], ["dog"]))
    async with visiting(settings) as browser:
        other = await _socket(browser, "/api/streams/1/pictures")
        about, _image = await _look(other)
        assert about["answers"][0]["query"] == "dog"
        await other.close()


async def test_the_wall_is_sent_tiles_and_a_camera_in_full_size(tmp_path: Path) -> None:
    Image.effect_noise((1600, 1200), 60).convert("RGB").save(tmp_path / "0.jpg", quality=90)
    settings = ConsoleSettings(cameras_from_sources([str(tmp_path)], ["dog"]))
    async with visiting(settings) as browser:
        news = await wall(browser, until=lambda news: bool(news["pictures"]))
        _about, full = await _look(await _socket(browser, "/api/streams/1/pictures"))
    (tile,) = news["images"]
    # Boxes are in pixels of the picture, not of the tile.
    assert [news["pictures"][0][side] for side in ("width", "height")] == [1600, 1200]
    assert (size_of(tile), size_of(full)) == ((400, 300), (1600, 1200))
    assert len(tile) < len(full) / 8


async def test_a_tile_is_scaled_once_and_kept_upright() -> None:
    async with running_service() as service, aio.Client(service.target) as client:
        result = await client.ground(picture(), ["dog"])
    exif = Image.Exif()
    exif[0x0112] = 6
    out = io.BytesIO()
    Image.new("RGB", (1600, 1200)).save(out, "JPEG", exif=exif)
    shown = Shown(out.getvalue(), result, time.monotonic())
    first, second = await asyncio.gather(shown.tile(), shown.tile())
    assert first is second
    assert size_of(first) == (300, 400)
    large = picture((1600, 1200))
    assert size_of(await Shown(large, result, 0.0).tile()) == (480, 360)
    for small in (picture(), b"no picture at all"):
        assert await Shown(small, result, 0.0).tile() is small


async def test_streams_of_other_clients_where_the_service_allows_it() -> None:
    async with (
        running_service(settings=OBSERVED) as service,
        running_console(service.target) as url,
        aiohttp.ClientSession(url) as browser,
        aio.Client(service.target) as robot,
        robot.watch(frames(*range(1, 200), every_s=0.05), ["dog"]) as stream,
    ):
        reading = asyncio.create_task(_read_all(stream))
        listed = (await wall(browser, until=lambda news: len(news["streams"]) == 1))["streams"][0]
        assert (listed["origin"], listed["queries"]) == ("OTHER", ["dog"])
        other = await _socket(browser, f"/api/streams/{listed['number']}/pictures")
        about, image = await _look(other)
        assert image == encoded_image(about["sequence"])
        # A page that could not draw for a while is not sent what it has missed.
        await asyncio.sleep(1.0)
        later, _image = await _look(other)
        assert later["sequence"] >= about["sequence"] + 10
        assert later["age_ms"] < 500
        await other.close()
        reading.cancel()


async def test_a_stream_of_this_console_is_on_the_wall_once(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(encoded_image(number))
    settings = ConsoleSettings(cameras_from_sources([str(tmp_path)], ["dog"]))
    async with (
        running_service(settings=OBSERVED) as service,
        running_console(service.target, settings) as url,
        aiohttp.ClientSession(url) as browser,
        aio.Client(service.target) as robot,
    ):
        await wall(browser, until=lambda news: news["streams"][0]["state"] == "LIVE")
        assert len(await robot.streams()) == 1
        async with robot.watch(frames(*range(1, 200), every_s=0.05), ["cat"]) as stream:
            reading = asyncio.create_task(_read_all(stream))
            news = await wall(browser, until=lambda news: len(news["streams"]) > 1)
            assert [one["queries"] for one in news["streams"]] == [["dog"], ["cat"]]
            reading.cancel()


async def test_other_pages_cannot_use_a_visitors_browser() -> None:
    foreign = {"origin": "https://evil.example"}
    async with visiting() as browser:
        async with browser.post("/api/ask", data=picture(), headers=foreign) as reply:
            assert reply.status == 403
        async with browser.get("/", headers={"host": "evil.example"}) as reply:
            assert reply.status == 421
        for headers in (foreign, {}):
            with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
                await browser.ws_connect("/api/watch?query=dog", headers=headers)
            assert refused.value.status == 403


async def test_visitors_from_other_machines_need_the_key() -> None:
    settings = ConsoleSettings(key="secret")
    async with visiting(settings) as browser:
        for path in ("/", "/api/service", "/?key=wrong"):
            async with browser.get(path) as reply:
                assert reply.status == 401
    async with (
        running_service() as service,
        running_console(service.target, settings) as url,
        aiohttp.ClientSession(url, cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser,
    ):
        async with browser.get("/?key=secret") as reply:
            assert reply.status == 200
            assert reply.url.query_string == ""
        async with browser.get("/api/service") as reply:
            assert reply.status == 200


async def test_without_a_service_the_page_says_so() -> None:
    async with (
        running_console("127.0.0.1:1") as url,
        aiohttp.ClientSession(url) as browser,
        browser.get("/api/service") as reply,
    ):
        assert reply.status == 502
        assert "UNAVAILABLE" in (await reply.json())["error"]


async def test_no_plain_page_for_other_machines() -> None:
    with pytest.raises(SettingsError, match="--insecure"):
        await run_console(
            ServiceAccess("127.0.0.1:1"),
            ServerSettings(host="0.0.0.0", port=8080),
            ConsoleSettings(),
            report=print,
        )


async def test_no_more_streams_than_allowed() -> None:
    board = an_empty_board()
    first = board.open("camera", ("dog",))
    with pytest.raises(Overloaded, match="1 streams open"):
        board.open("other", ("dog",))
    board.end(first)
    second = board.open("camera", ("dog",), origin=Origin.BROWSER)
    assert [stream.number for stream in board.streams()] == [second.number] == [2]


def test_books_add_up_on_the_page_too() -> None:
    books = books_view(StreamStats(received=9, answered=2, tracked_only=4, superseded=1, failed=2))
    parts = ("answered", "tracked_only", "superseded", "expired", "rejected", "failed", "in_flight")
    assert books["received"] == sum(books[part] for part in parts)


async def test_what_was_not_counted_is_not_zero() -> None:
    async with running_service() as service, aio.Client(service.target) as client:
        view = service_view(await client.capabilities(), await client.stats())
    assert view["cache"]["hit_share"] is None


def test_third_party_files_are_small_and_come_with_their_licences() -> None:
    files = {path.name: path.stat().st_size for path in VENDOR.iterdir()}
    code = [size for name, size in files.items() if name.endswith((".mjs", ".css"))]
    assert sum(code) < 100_000
    assert {"htm.LICENSE", "pico.LICENSE", "preact.LICENSE"} < set(files)


async def wall(
    browser: aiohttp.ClientSession,
    *,
    until: Callable[[dict[str, Any]], bool] = lambda _news: True,
) -> dict[str, Any]:
    """What the wall shows as soon as `until` is true of it, with its pictures as `images`."""
    socket = await _socket(browser, "/api/wall")
    async with asyncio.timeout(15):
        while True:
            await socket.send_str("next")
            news: dict[str, Any] = await socket.receive_json()
            news["images"] = [await socket.receive_bytes() for _ in news["pictures"]]
            if until(news):
                await socket.close()
                return news


async def _socket(browser: aiohttp.ClientSession, path: str) -> aiohttp.ClientWebSocketResponse:
    origin = str(browser._base_url).rstrip("/")
    return await browser.ws_connect(path, headers={"origin": origin})


async def _look(socket: aiohttp.ClientWebSocketResponse) -> tuple[dict[str, Any], bytes]:
    """What a page is told when it asks for the next picture, and the picture."""
    await socket.send_str("next")
    async with asyncio.timeout(10):
        return await socket.receive_json(), await socket.receive_bytes()


async def _read_all(stream: WatchStream) -> None:
    async for _event in stream:
        pass


async def _next(socket: aiohttp.ClientWebSocketResponse, kind: str) -> dict:
    async with asyncio.timeout(10):
        while (event := await socket.receive_json())["kind"] != kind:
            assert event["kind"] != "error", event
    return event


async def test_a_port_that_is_taken_is_told_before_the_address() -> None:
    told: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = ServerSettings(host="127.0.0.1", port=taken.getsockname()[1])
        with pytest.raises(SettingsError, match="give another --port"):
            await run_console(
                ServiceAccess("127.0.0.1:1"), server, ConsoleSettings(), report=told.append
            )
    assert not told


async def test_no_password_of_a_camera_is_shown(caplog: pytest.LogCaptureFixture) -> None:
    camera = "rtsp://user:secret@127.0.0.1:1/stream"
    settings = ConsoleSettings(cameras_from_sources([camera], ["dog"]))
    assert list(settings.cameras) == ["stream"]
    async with visiting(settings) as browser:
        async with asyncio.timeout(20.0):
            while "trying again" not in caplog.text:
                await asyncio.sleep(0.05)
        async with browser.get("/api/service") as reply:
            said = await reply.text()
    assert "secret" not in said + caplog.text


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "null", "http://a]b", "\x00"])
async def test_an_origin_that_is_no_address_is_somebody_elses(origin: str) -> None:
    async with running_service() as service, running_console(service.target) as url:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        lines = f"GET / HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: {origin}\r\n\r\n"
        writer.write(lines.encode())
        status = int((await reader.readline()).split()[1])
        writer.close()
    assert status in (400, 403)


@pytest.mark.parametrize("number", ["9" * 5000, "9" * 30, "-1", "x", "\u0663"])
async def test_a_number_that_no_stream_has(number: str) -> None:
    async with visiting() as browser:
        async with browser.get(f"/api/streams/{number}/places") as reply:
            assert reply.status == 404
        socket = await _socket(browser, f"/api/streams/{number}/pictures")
        closed = await socket.receive()
        assert closed.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED)
        assert socket.close_code == 1008


async def test_what_was_wrong_is_forgotten_when_the_stream_is_open_again() -> None:
    async with running_service() as service, aio.Client(service.target) as client:
        board = an_empty_board()
        shown = board.open("camera", ("dog",))
        shown.say("UNAVAILABLE: Connection refused", is_lost=True)
        await feeds.relay(client, board, shown, frames(1, 2), ("dog",))
        assert (shown.error, shown.is_lost) == ("", False)


async def test_a_source_that_takes_long_to_open_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def opens_slowly(*_arguments: object, **_options: object) -> None:
        time.sleep(0.5)
        raise SourceError("nobody is there")

    monkeypatch.setattr(feeds, "open_source", opens_slowly)
    board = an_empty_board()
    shown = board.open("camera", ("dog",))
    camera = CameraSettings("camera", "rtsp://camera/", (Query("dog"),))
    async with aio.Client("127.0.0.1:1") as client:
        showing = asyncio.create_task(feeds.show_camera(client, board, shown, camera))
        began_s = time.monotonic()
        await asyncio.sleep(0.01)
        assert time.monotonic() - began_s < 0.3
        async with asyncio.timeout(10):
            while not shown.error:
                await asyncio.sleep(0.01)
        showing.cancel()


def an_empty_board() -> Board:
    return Board(max_streams=1, log=EventLog(), places=PlaceStore({}))


async def test_unfinished_requests_keep_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 20)
    monkeypatch.setattr(connections, "REQUEST_S", 0.5)
    settings = ConsoleSettings(hosts=PORT_HOSTS, max_uploads=4, upload_s=1.0)
    async with visiting(settings) as browser:
        host, port = browser._base_url.host, browser._base_url.port  # type: ignore[union-attr]
        heads = [await asyncio.open_connection(host, port) for _ in range(70)]
        for _, writer in heads:
            writer.write(b"GET / HTTP/1.1\r\nHost: ")
        async with browser.get("/") as page:
            assert page.status == 200
        ends = [asyncio.wait_for(reader.read(), 5) for reader, _ in heads]
        assert await asyncio.gather(*ends, return_exceptions=True) == [b""] * 70
        bodies = [await asyncio.open_connection(host, port) for _ in range(12)]
        for _, writer in bodies:
            head = f"POST /api/ask?query=dog HTTP/1.1\r\nHost: {host}:{port}\r\n"
            writer.write(head.encode() + b"Content-Length: 100\r\n\r\n")
        await asyncio.sleep(0.05)
        params = {"query": "dog", "task": "DETECT"}
        async with browser.post("/api/ask", params=params, data=encoded_image()) as reply:
            assert reply.status == 200
        statuses = [int((await asyncio.wait_for(r.readline(), 5)).split()[1]) for r, _ in bodies]
        assert sorted(set(statuses)) == [400, 429]
        for _, writer in (*heads, *bodies):
            writer.close()
