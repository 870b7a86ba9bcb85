"""What `groundstream watch` shows and refuses, over the service with fake stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deployments.cli import build_app
from deployments.local.event_file import EventFile
from deployments.local.watch import watch_source
from groundstream import aio
from groundstream.errors import InvalidQuery, SettingsError
from groundstream.event_detector import EventDetector, EventSettings
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.scene_events import EventKind, event_from_json
from groundstream.video.pictures import RGBArray, encode_jpeg
from groundstream.zones import Zone
from tests.clips import write_clip
from tests.in_process import running_service
from tests.pictures import encoded_image


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    path.write_bytes(encoded_image(1, kind="PNG"))
    return path


async def test_one_picture_is_shown_with_its_answer(
    picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with running_service() as service, aio.Client(service.target) as client:
        await watch_source(client, str(picture), ["dog"], as_json=True)
        events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        (answer,) = [event for event in events if event["event"] == "FrameResult"]
        assert answer["results"][0]["status"] == "OK"
        assert answer["results"][0]["detections"]
        await watch_source(client, str(picture), ["dog"])
        assert "OK" in capsys.readouterr().out


@pytest.mark.parametrize("query", ["", "  ", "<region3>", "x" * 2001, "dog\udcff"])
async def test_a_query_that_cannot_be_asked_is_refused_before_anything_is_sent(
    picture: Path, query: str
) -> None:
    async with aio.Client("127.0.0.1:1") as client:
        with pytest.raises(InvalidQuery):
            await watch_source(client, str(picture), ["dog", query], patience_s=0.1)


async def test_what_happens_is_added_to_a_file(picture: Path, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text("a line of the watch before\n")
    at_once = EventSettings(appear_s=0.0, settle_s=0.0)
    whole = Zone("whole", ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)))
    async with running_service() as service, aio.Client(service.target) as client:
        with EventFile(path, EventDetector([whole], settings=at_once)) as events:
            await watch_source(client, str(picture), ["dog"], events=events, as_json=True)
    before, *lines = path.read_text().splitlines()
    assert before == "a line of the watch before"
    told = [event_from_json(line) for line in lines]
    kinds = [event.kind for event in told]
    num_dogs = kinds.count(EventKind.APPEARED)
    assert num_dogs > 0
    assert kinds.count(EventKind.ZONE_ENTERED) == num_dogs
    assert {event.count for event in told if event.place == ""} == {None, num_dogs}


def test_events_need_a_file_that_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="events cannot be written"):
        EventFile(tmp_path / "no folder" / "events.jsonl", EventDetector())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--line", "door=0,0;1,1"], "need --events"),
        (["--events", "e.jsonl", "--zone", "door=0,0;1,1"], "needs at least 3"),
        (["--events", "e.jsonl", "--line", "door=10,10;20,20"], "outside the picture"),
    ],
)
def test_zones_and_lines_are_checked_before_anything_is_opened(
    options: list[str], message: str
) -> None:
    done = CliRunner().invoke(build_app(), ["watch", "nothing.mp4", "dog", *options])
    assert done.exit_code != 0
    assert message in f"{done.output} {done.exception}"


async def test_a_video_is_passed_on_where_the_service_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", 6)
    compressed: list[int] = []

    def encode(rgb: RGBArray, quality: int) -> bytes:
        compressed.append(quality)
        return encode_jpeg(rgb, quality)

    monkeypatch.setattr("groundstream.video.playback.encode_jpeg", encode)
    async with running_service() as service, aio.Client(service.target) as client:
        await watch_source(client, str(clip), ["dog"], as_json=True)
        assert len(compressed) == 6  # This service says nothing of packets.
        service.agent._capabilities.video_codecs.extend([pb.VIDEO_CODEC_H264, 99])
        for options, num in (
            ({}, 0),
            ({"decode": True}, 6),
            ({"output": tmp_path / "out.mp4"}, 6),
        ):
            compressed.clear()
            capsys.readouterr()
            await watch_source(client, str(clip), ["dog"], as_json=True, **options)
            assert len(compressed) == num
            last = [json.loads(line) for line in capsys.readouterr().out.splitlines()][-1]
            assert (last["received"], last["rejected"], last["in_flight"]) == (6, 0, 0)


async def test_queries_that_the_service_refuses_end_the_watch(picture: Path) -> None:
    async with running_service() as service, aio.Client(service.target) as client:
        with pytest.raises(InvalidQuery, match="more than 16 queries"):
            await watch_source(client, str(picture), [f"thing {n}" for n in range(17)])
