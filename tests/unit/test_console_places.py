"""Zones and lines in the console: drawn, changed, bounded, and kept in the runner's own form."""

from __future__ import annotations

import json
from pathlib import Path

import aiohttp
import pytest
from typer.testing import CliRunner

from deployments.cli import build_app
from deployments.console.app import ConsoleSettings, cameras_from_sources
from deployments.console.places import PlaceStore, line_from_fields, zone_from_fields
from groundstream.cameras.place_file import (
    Places,
    places_text,
    read_place_file,
    write_place_file,
)
from groundstream.cameras.schema import MAX_PLACES, read_cameras, read_runner_file
from groundstream.errors import EventsError, InvalidQuery, SettingsError
from groundstream.zones import Line, Unit, Zone
from tests.pictures import encoded_image
from tests.unit.test_console import PORT_HOSTS, running_console, visiting, wall

EXAMPLE = Path(__file__).parents[2] / "examples" / "cameras.yaml"
SQUARE = [[0.1, 0.1], [0.5, 0.1], [0.5, 0.5], [0.1, 0.5]]
DOOR = Zone("door", tuple((x, y) for x, y in SQUARE), dwell_s=2.5, queries=("person",))
KERB = Line("kerb", ((0.0, 0.5), (1.0, 0.25)))
PIXELS = Zone("far", ((10.0, 10.0), (90.0, 10.0), (90.0, 60.0)), Unit.PIXELS)


def drawn_settings(tmp_path: Path, place_file: Path | None = None) -> ConsoleSettings:
    folder = tmp_path / "gate"
    folder.mkdir(exist_ok=True)
    (folder / "1.jpg").write_bytes(encoded_image(1))
    cameras = cameras_from_sources([str(folder)], ["dog"])
    assert list(cameras) == ["gate"]
    return ConsoleSettings(cameras, place_file, hosts=PORT_HOSTS)


async def test_a_zone_and_a_line_are_drawn_changed_and_removed(tmp_path: Path) -> None:
    async with visiting(drawn_settings(tmp_path)) as browser:
        fields = {"points": SQUARE, "dwell_s": 3, "queries": ["dog"]}
        async with browser.put("/api/streams/1/zones/door", json=fields) as reply:
            assert reply.status == 200
            (zone,) = (await reply.json())["zones"]
        assert (zone["name"], zone["points"], zone["dwell_s"]) == ("door", SQUARE, 3.0)
        assert zone["queries"] == ["dog"]
        async with browser.put("/api/streams/1/lines/kerb", json={"points": SQUARE[:2]}) as reply:
            assert reply.status == 200
        triangle = {"points": SQUARE[:3]}
        async with browser.put("/api/streams/1/zones/door", json=triangle) as reply:
            found = await reply.json()
        assert [len(one["points"]) for one in found["zones"] + found["lines"]] == [3, 2]
        assert (await wall(browser))["streams"][0]["places_version"] == 3
        async with browser.delete("/api/streams/1/zones/door") as reply:
            assert reply.status == 200
        async with browser.get("/api/streams/1/places") as reply:
            left = await reply.json()
        assert (left["zones"], len(left["lines"]), left["version"]) == ([], 1, 4)


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("zones/door", b"{", 400, "no JSON"),
        ("zones/door", b"[" * 50_000, 400, "no JSON"),
        ("zones/door", b"[]", 422, "list of [x, y]"),
        ("zones/door", json.dumps({"points": [[0, 0], [1]]}).encode(), 422, "list of [x, y]"),
        ("zones/door", json.dumps({"points": [[0, 0], [1, True]]}).encode(), 422, "[x, y]"),
        ("zones/door", b'{"points": [[0, 0], [1, NaN], [1, 1]]}', 422, "list of [x, y]"),
        ("zones/door", json.dumps({"points": SQUARE[:2]}).encode(), 422, "needs at least 3"),
        ("zones/door", b'{"points": [[0,0],[1,1],[1,0],[0,1]]}', 422, "crosses itself"),
        ("zones/door", b'{"points": [[0,0],[9,0],[9,9]]}', 422, "outside the picture"),
        ("zones/door", json.dumps({"points": [[0, 0]] * 300}).encode(), 422, "256 are possible"),
        ("zones/door", json.dumps({"points": SQUARE, "dwell_s": -1}).encode(), 422, "dwell_s"),
        ("zones/door", json.dumps({"points": SQUARE, "queries": "x"}).encode(), 422, "queries"),
        ("zones/a%20b", json.dumps({"points": SQUARE}).encode(), 422, "letters, digits"),
        ("zones/" + "a" * 65, json.dumps({"points": SQUARE}).encode(), 422, "64 at most"),
        ("lines/kerb", json.dumps({"points": SQUARE}).encode(), 422, "needs 2"),
        ("zones/door", b" " * 65_537, 413, "65536 bytes"),
    ],
)
async def test_what_is_no_place_is_told_why(
    tmp_path: Path, path: str, body: bytes, status: int, says: str
) -> None:
    async with (
        running_console("127.0.0.1:1", drawn_settings(tmp_path)) as url,
        aiohttp.ClientSession(url) as browser,
    ):
        async with browser.put(f"/api/streams/1/{path}", data=body) as reply:
            assert (reply.status, says in (await reply.json())["error"]) == (status, True)
        async with browser.get("/api/streams/1/places") as reply:
            assert (await reply.json())["version"] == 0


async def test_other_pages_draw_nothing(tmp_path: Path) -> None:
    async with (
        running_console("127.0.0.1:1", drawn_settings(tmp_path)) as url,
        aiohttp.ClientSession(url) as browser,
        browser.put(
            "/api/streams/1/zones/door",
            json={"points": SQUARE},
            headers={"origin": "https://evil.example"},
        ) as reply,
    ):
        assert reply.status == 403


async def test_what_is_drawn_is_in_the_file_and_there_again(tmp_path: Path) -> None:
    path = tmp_path / "zones.yaml"
    settings = drawn_settings(tmp_path, path)
    for _ in range(2):  # the second console finds what the first one left
        async with (
            running_console("127.0.0.1:1", settings) as url,
            aiohttp.ClientSession(url) as browser,
        ):
            async with browser.get("/api/streams/1/places") as reply:
                known = await reply.json()
            fields = {"points": SQUARE}
            async with browser.put("/api/streams/1/zones/door", json=fields) as reply:
                assert reply.status == 200
    assert [zone["name"] for zone in known["zones"]] == ["door"]
    assert known["yaml"] in path.read_text()
    assert read_place_file(path)["gate"].zones[0].name == "door"


async def test_a_file_that_cannot_be_written_changes_nothing(tmp_path: Path) -> None:
    settings = drawn_settings(tmp_path, tmp_path / "nowhere" / "zones.yaml")
    async with (
        running_console("127.0.0.1:1", settings) as url,
        aiohttp.ClientSession(url) as browser,
    ):
        async with browser.put("/api/streams/1/zones/door", json={"points": SQUARE}) as reply:
            assert reply.status == 507
            assert "cannot be written" in (await reply.json())["error"]
        async with browser.get("/api/streams/1/places") as reply:
            assert (await reply.json())["zones"] == []


async def test_a_camera_has_so_many_places_and_no_more() -> None:
    store = PlaceStore({})
    for number in range(MAX_PLACES):
        await store.put("gate", line_from_fields(f"l{number}", {"points": SQUARE[:2]}))
    with pytest.raises(EventsError, match="64 already"):
        await store.put("gate", line_from_fields("more", {"points": SQUARE[:2]}))
    await store.put("gate", line_from_fields("l0", {"points": SQUARE[1:3]}))
    await store.put("gate", zone_from_fields("z", {"points": SQUARE}))
    assert len(store.of("gate").lines) == MAX_PLACES


async def test_names_that_never_end_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.console.places.MAX_NAMED_CAMERAS", 2)
    store = PlaceStore({})
    for name in ("a", "b"):
        await store.put(name, DOOR)
    with pytest.raises(EventsError, match="2 cameras"):
        await store.put("c", DOOR)


def test_the_file_is_what_a_file_of_cameras_says(tmp_path: Path) -> None:
    places = {"gate": Places((DOOR, PIXELS), (KERB,)), "yard": Places()}
    path = tmp_path / "zones.yaml"
    write_place_file(path, places)
    assert read_place_file(path) == places
    assert [name.name for name in tmp_path.iterdir()] == ["zones.yaml"]
    # Pasted into a file of cameras, below the keys that a camera has.
    pasted = places_text({"gate": places["gate"]})
    source = pasted.replace("  gate:\n", "  gate:\n    source: camera:0\n    queries: [person]\n")
    (tmp_path / "cameras.yaml").write_text(source + "sinks: {log: {type: jsonl, path: e.jsonl}}\n")
    camera = read_runner_file(tmp_path / "cameras.yaml").cameras["gate"]
    assert (camera.zones, camera.lines) == ((DOOR, PIXELS), (KERB,))


def test_a_file_that_is_more_than_places_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "cameras.yaml"
    path.write_text(EXAMPLE.read_text())
    with pytest.raises(SettingsError, match="source is no key here"):
        PlaceStore({}, path)
    assert path.read_text() == EXAMPLE.read_text()


def test_the_cameras_alone_of_a_runners_file(tmp_path: Path) -> None:
    assert read_cameras(EXAMPLE) == read_runner_file(EXAMPLE).cameras
    path = tmp_path / "cameras.yaml"
    # Secrets of sinks are none of the console's business.
    path.write_text(
        "cameras: {gate: {source: 'camera:0', queries: [dog], sinks: [web]}}\n"
        "sinks: {web: {type: webhook, url: 'http://h', secret: {env: NOT_SET_ANYWHERE}}}\n"
    )
    assert list(read_cameras(path)) == ["gate"]
    path.write_text("cameras: {gate: {source: 'camera:0', quries: [dog]}}\n")
    with pytest.raises(SettingsError, match="did you mean queries"):
        read_cameras(path)


def test_cameras_are_named_after_their_sources() -> None:
    sources = ["a/street.mp4", "b/street.avi", "rtsp://u:secret@host/yard?token=x", "camera:0"]
    named = cameras_from_sources(sources, ["dog"], taken=["yard"])
    assert list(named) == ["street", "street-2", "yard-2", "camera-0"]


def test_a_query_that_is_no_text_is_refused_at_the_start() -> None:
    with pytest.raises(InvalidQuery, match="no character"):
        cameras_from_sources(["a.mp4"], ["dog\udcff"])


def test_a_file_with_a_mistake_is_told_without_a_traceback(tmp_path: Path) -> None:
    path = tmp_path / "zones.yaml"
    path.write_text("cameras: {gate: {zones: {door: {points: [[0, 0], [1, 1]]}}}}\n")
    told = CliRunner().invoke(build_app(), ["console", "--zones", str(path), "--port", "8999"])
    assert isinstance(told.exception, SettingsError)  # `main` makes one line of it.
    assert "needs at least 3" in str(told.exception)
