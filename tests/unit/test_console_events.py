"""Events in the console: told once, kept for a day, bounded, taken back, and in a file."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from pathlib import Path

import aiohttp
import pytest

from deployments.console import event_log
from deployments.console.app import ConsoleSettings, cameras_from_sources
from deployments.console.board import Board, StreamState
from deployments.console.event_log import EventLog
from deployments.console.places import PlaceStore
from groundstream.cameras.place_file import Places
from groundstream.errors import SettingsError
from groundstream.events import Observed
from groundstream.scene_events import EventKind, SceneEvent
from groundstream.types import OutgoingFrame
from groundstream.zones import Unit, Zone
from tests.moving_pictures import MovingPicture
from tests.pictures import encoded_image
from tests.unit.test_console import PORT_HOSTS, _socket, running_console, visiting
from tests.unit.test_scene_events import a_result, an_answer

DAY_NS = 86_400 * 1_000_000_000
LOWER_HALF = Zone("lower", ((0.0, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0)))


def happened(
    number: int, kind: EventKind = EventKind.APPEARED, *, retracts: str = ""
) -> SceneEvent:
    return SceneEvent(f"id-{number}", kind, "person", number, 1, number, 1, retracts=retracts)


def numbers(log: EventLog, **wanted: object) -> list[int]:
    return [event.number for event in log.newest(100, **wanted)]  # type: ignore[arg-type]


def test_the_newest_come_first_and_by_camera_and_kind() -> None:
    log = EventLog()
    log.add("gate", [happened(1), happened(2, EventKind.LEFT)])
    log.add("yard", [happened(3)])
    log.add("gate", [happened(4)])
    assert numbers(log) == [4, 3, 2, 1]
    assert numbers(log, camera="gate", kind="APPEARED") == [4, 1]
    assert numbers(log, before=3) == [2, 1]
    assert numbers(log, camera="nowhere") == []
    assert log.counts() == {"gate": 3, "yard": 1}


def test_a_retracted_event_says_so_and_the_retraction_is_no_event_of_its_own() -> None:
    log = EventLog()
    log.add("gate", [happened(1), happened(2), happened(3, EventKind.RETRACTED, retracts="id-1")])
    assert [(event.number, event.is_retracted) for event in log.newest(9)] == [
        (2, False),
        (1, True),
    ]
    assert log.newest(9)[1].view()["retracted"] is True
    assert numbers(log, kind="RETRACTED") == [3]


def test_a_busy_camera_makes_room_itself() -> None:
    log = EventLog(max_events=10)
    log.add("quiet", [happened(1)])
    log.add("busy", [happened(number) for number in range(2, 52)])
    assert numbers(log, camera="quiet") == [1]
    assert numbers(log, camera="busy") == list(range(51, 42, -1))
    assert log.num_left_out == 41


def test_what_is_older_than_a_day_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    log = EventLog()
    log.add("gate", [happened(1)])
    later_ns = time.time_ns() + DAY_NS + 1
    monkeypatch.setattr(time, "time_ns", lambda: later_ns)
    log.add("gate", [happened(2)])
    assert numbers(log) == [2]


async def test_a_slow_listener_is_told_everything_in_one_piece() -> None:
    log = EventLog()
    log.add("gate", [happened(1)])
    listening = log.follow()
    coming = asyncio.create_task(anext(listening))
    await asyncio.sleep(0)
    log.add("gate", [happened(2)])
    assert [event.number for event in await coming] == [2]
    log.add("yard", [happened(3)])
    log.add("gate", [happened(4)])
    assert [event.number for event in await anext(listening)] == [3, 4]


async def test_the_file_has_every_event_and_the_next_console_reads_the_last_day(
    tmp_path: Path,
) -> None:
    path = tmp_path / "events.jsonl"
    old = {"id": "old", "type": "event", "camera": "gate", "time_ns": 1, "event": {"kind": "LEFT"}}
    path.write_text(json.dumps(old) + '\n{"half a li\n[]\n{"type": "event"}\n')
    log = EventLog(path)
    assert numbers(log) == []
    writing = asyncio.create_task(log.write())
    log.add("gate", [happened(1), happened(2), happened(3, EventKind.RETRACTED, retracts="id-1")])
    log.close()
    await writing
    lines = [json.loads(line) for line in path.read_text().splitlines()[4:]]
    assert [line["event"]["id"] for line in lines] == ["id-1", "id-2", "id-3"]
    again = EventLog(path)
    found = [(event.id, event.is_retracted) for event in again.newest(9)]
    assert found == [("id-2", False), ("id-1", True)]
    again.add("gate", [happened(4)])
    assert numbers(again)[0] == 4


async def test_a_disk_that_takes_nothing_for_a_while_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_RETRY_S", 0.01)
    folder = tmp_path / "away"
    folder.mkdir()
    path = folder / "events.jsonl"
    log = EventLog(path)
    path.unlink()
    folder.rmdir()
    writing = asyncio.create_task(log.write())
    log.add("gate", [happened(1)])
    await asyncio.sleep(0.05)
    folder.mkdir()
    log.add("gate", [happened(2)])
    async with asyncio.timeout(5):
        while not path.exists() or len(path.read_text().splitlines()) < 2:
            await asyncio.sleep(0.01)
    log.close()
    await writing
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ["id-1", "id-2"]


async def test_events_wait_in_a_bounded_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_log, "_MAX_UNWRITTEN", 3)
    log = EventLog(tmp_path / "events.jsonl")
    log.add("gate", [happened(number) for number in range(1, 6)])
    assert log.num_unwritten == 2


def test_a_file_that_cannot_be_written_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="events cannot be written"):
        EventLog(tmp_path / "nowhere" / "events.jsonl")


# ---- of streams ----


def observed(sequence: int, *, at: tuple[float, float] = (50.0, 80.0)) -> Observed:
    result = dataclasses.replace(
        a_result(sequence, an_answer({7: at})),
        capture_time_ns=0,
        received_time_ns=100_000_000 * sequence,
    )
    return Observed(encoded_image(sequence), result)


async def test_events_of_another_clients_stream_that_sends_no_times() -> None:
    places = PlaceStore({"stream-1": Places((LOWER_HALF,))})
    board = Board(max_streams=4, log=EventLog(), places=places)
    stream = board.open("stream-1", ("person",))
    for sequence in range(12):
        stream.note_observed(observed(sequence))
    told = [event.view()["event"]["kind"] for event in reversed(board.log.newest(9))]
    assert told == ["APPEARED", "ZONE_ENTERED", "COUNT_CHANGED", "COUNT_CHANGED"]


async def test_a_zone_that_is_drawn_later_tells_nothing_twice() -> None:
    places = PlaceStore({})
    board = Board(max_streams=4, log=EventLog(), places=places)
    stream = board.open("gate", ("person",))
    for sequence in range(12):
        stream.note_observed(observed(sequence))
    await places.put("gate", LOWER_HALF)
    assert stream.places_version == 1
    for sequence in range(12, 24):
        stream.note_observed(observed(sequence))
    told = [event.view()["event"]["kind"] for event in reversed(board.log.newest(9))]
    assert told == ["APPEARED", "COUNT_CHANGED", "ZONE_ENTERED", "COUNT_CHANGED"]


async def test_a_zone_in_pixels_that_does_not_fit_is_an_error_of_its_stream_alone() -> None:
    far = Zone("far", ((500.0, 500.0), (900.0, 500.0), (900.0, 900.0)), Unit.PIXELS)
    places = PlaceStore({"gate": Places((far,))})
    board = Board(max_streams=4, log=EventLog(), places=places)
    gate, yard = board.open("gate", ("person",)), board.open("yard", ("person",))
    for stream in (gate, yard):
        stream.note_observed(observed(0))
    assert "outside a picture of 200x100" in gate.error
    assert (gate.state, yard.state, yard.error) == (StreamState.LIVE, StreamState.LIVE, "")


async def test_boxes_are_shown_on_the_picture_they_were_found_in_and_never_an_older_one() -> None:
    board = Board(max_streams=4, log=EventLog(), places=PlaceStore({}))
    stream = board.open("gate", ("person",))
    taken_ns = time.time_ns() - 2_000_000_000
    for sequence in range(4):
        stream.note_sent(OutgoingFrame(b"%d" % sequence, sequence, capture_time_ns=taken_ns))
    shown = []
    for sequence in (0, 2, 1, 3):
        stream.note_event(a_result(sequence, an_answer({7: (50.0, 80.0)})))
        assert stream.latest is not None
        shown.append((stream.latest.encoded, stream.latest.result.sequence))
    assert shown == [(b"0", 0), (b"2", 2), (b"2", 2), (b"3", 3)]
    assert 2000 <= stream.summary()["age_ms"] < 4000  # since it was taken, not since it came
    stream.begin(Places())
    stream.note_sent(OutgoingFrame(b"new", 0))
    stream.note_event(a_result(0))
    assert stream.latest.encoded == b"new"


async def test_a_picture_says_how_old_it_is_and_when_it_is_none_of_now(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    board = Board(max_streams=4, log=EventLog(), places=PlaceStore({}))
    stream = board.open("gate", ("person",))
    assert (stream.state, stream.summary()["age_ms"]) == (StreamState.WAITING, None)
    stream.note_observed(observed(0))
    assert stream.state is StreamState.LIVE
    real, offset_s = time.monotonic, 6.0
    monkeypatch.setattr(time, "monotonic", lambda: real() + offset_s)
    assert stream.state is StreamState.STALLED
    assert 6000 <= stream.summary()["age_ms"] < 7000
    stream.say("the camera is away", is_lost=True)
    assert stream.state is StreamState.LOST
    stream.note_observed(observed(1))
    assert stream.state is StreamState.LIVE
    board.end(stream)
    assert [one.state for one in board.streams()] == [StreamState.ENDED]
    offset_s = 70.0
    assert board.streams() == []


# ---- of the page ----


async def test_events_are_listed_and_pushed(tmp_path: Path) -> None:
    for number in range(8):
        (tmp_path / f"{number}.jpg").write_bytes(jpeg(number))
    cameras = cameras_from_sources([str(tmp_path)], ["dog"])
    settings = ConsoleSettings(cameras, hosts=PORT_HOSTS)
    async with visiting(settings) as browser:
        pushed = await _socket(browser, "/api/events/new")
        record = (await asyncio.wait_for(pushed.receive_json(), 15))["events"][0]
        assert record["event"]["kind"] == "APPEARED"
        assert record["camera"] == next(iter(cameras))
        async with browser.get("/api/events", params={"kind": "APPEARED"}) as reply:
            listed = (await reply.json())["events"]
        assert record["id"] in [one["id"] for one in listed]
        async with browser.get("/api/service") as reply:
            assert sum((await reply.json())["events"]["by_camera"].values()) >= 1


@pytest.mark.parametrize(
    ("params", "says"),
    [({"limit": "-1"}, "'-1'"), ({"before": "x"}, "'x'"), ({"kind": "FLEW"}, "'FLEW'")],
)
async def test_a_bad_list_of_events_is_told_why(params: dict[str, str], says: str) -> None:
    async with (
        running_console("127.0.0.1:1") as url,
        aiohttp.ClientSession(url) as browser,
        browser.get("/api/events", params=params) as reply,
    ):
        assert reply.status == 400
        assert says in (await reply.json())["error"]


def jpeg(number: int) -> bytes:
    import cv2

    picture = MovingPicture().grey(at=(40 + 2 * number, 100))
    return bytes(cv2.imencode(".jpg", picture)[1])
