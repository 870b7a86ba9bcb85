"""Boxes as vision_msgs in MCAP, written and read by rosbags; no ROS."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from deployments.local.watch import watch_source
from groundstream import aio
from groundstream.errors import SettingsError
from groundstream.types import OutgoingFrame, StreamPolicy
from groundstream.video.detection_bag import DETECTIONS, DetectionBag, filled, vision_types
from groundstream.video.sources import open_source
from tests.clips import write_clip
from tests.in_process import running_service
from tests.pictures import encoded_image
from tests.unit.test_exporters import CAT, DOG, result

pytest.importorskip("rosbags", reason="pip install 'groundstream-client[ros]'")
from rosbags.highlevel import AnyReader
from rosbags.typesys import Stores, get_typestore

TYPE_HASH = "RIHS01_214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968"
"""RIHS01, ROS's own, of Detection2DArray and all in it, from the files of vision_msgs 4.1.1."""
TAKEN_NS = 1_600_000_000_000_000_007


def messages(path: Path) -> dict[str, list[tuple[int, Any]]]:
    """By topic, read with the definitions that the recording holds itself."""
    read: dict[str, list[tuple[int, Any]]] = {}
    empty = get_typestore(Stores.EMPTY)
    with AnyReader([path], default_typestore=empty) as reader:
        for connection, logged_ns, raw in reader.messages():
            message = reader.deserialize(raw, connection.msgtype)
            read.setdefault(connection.topic, []).append((logged_ns, message))
    return read


def stamp_ns(message: Any) -> int:
    return message.header.stamp.sec * 10**9 + message.header.stamp.nanosec


def test_what_was_found_is_read_back_to_the_bit(tmp_path: Path) -> None:
    third = 1 / 3
    odd = DOG.__class__((third, 0.1, 10.7, 20.3), "the red mug, 赤", third, 0, 0.5, track_id=2**40)
    with DetectionBag(tmp_path / "seen", topic="/front", frame_id="front") as bag:
        bag.add_result(result(4, DOG, CAT, odd))
        bag.add_result(result(5))
    for path in (tmp_path / "seen", tmp_path / "seen" / "seen.mcap"):
        (logged_ns, first), (_, nothing) = messages(path)["/front/detections"]
        assert logged_ns == stamp_ns(first) == 1_700_000_001_234_567_891
        dog, cat, mug = first.detections
        assert dog.header.frame_id == "front"
        assert (dog.bbox.center.position.x, dog.bbox.center.position.y) == (25.0, 40.0)
        assert (dog.bbox.size_x, dog.bbox.size_y) == (30.0, 40.0)
        assert (dog.id, cat.id, mug.id) == ("7", "", str(2**40))
        hypothesis = mug.results[0].hypothesis
        assert (hypothesis.class_id, hypothesis.score) == ("the red mug, 赤", third)
        assert mug.bbox.size_x == 10.7 - third
        assert not mug.results[0].pose.covariance.any()
        assert len(nothing.detections) == 0


def test_a_picture_of_a_recording_keeps_its_time_and_so_do_its_boxes(tmp_path: Path) -> None:
    with DetectionBag(tmp_path / "seen") as bag:
        for sequence in (3, 4):
            frame = OutgoingFrame(encoded_image(1), sequence, 1_700_000_000_000_000_000)
            bag.add_frame(frame, TAKEN_NS + sequence)
        bag.add_result(result(4, DOG))
        bag.add_result(result(5, DOG))
        assert not bag._taken_ns
    read = messages(tmp_path / "seen")
    assert [stamp_ns(message) for _, message in read["/camera/detections"]] == [
        TAKEN_NS + 4, 1_700_000_001_234_567_891,
    ]  # fmt: skip
    pictures = read["/camera/image/compressed"]
    assert [(at, stamp_ns(message)) for at, message in pictures] == [
        (TAKEN_NS + sequence, TAKEN_NS + sequence) for sequence in (3, 4)
    ]
    assert bytes(pictures[0][1].data) == encoded_image(1)


def test_the_definitions_are_those_of_vision_msgs() -> None:
    assert vision_types().hash_rihs01(DETECTIONS) == TYPE_HASH


def test_fields_that_ros_does_not_know_are_refused() -> None:
    with pytest.raises(KeyError, match="has no label"):
        filled(vision_types(), DETECTIONS, {"detections": [{"label": "dog"}]})


def test_what_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not there yet"):
        DetectionBag(tmp_path)
    with pytest.raises(SettingsError, match=r"its file will be .*/seen/seen\.mcap$"):
        DetectionBag(tmp_path / "seen.mcap")
    (tmp_path / "file").touch()
    with pytest.raises(SettingsError, match="cannot write a recording to"):
        DetectionBag(tmp_path / "file" / "seen")


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rosbags.typesys", None)
    with pytest.raises(SettingsError, match=r"groundstream-client\[ros\]"):
        DetectionBag(tmp_path / "seen")


def test_what_was_recorded_before_an_error_can_be_read(tmp_path: Path) -> None:
    def broken() -> None:
        with DetectionBag(tmp_path / "seen") as bag:
            bag.add_result(result(1, DOG))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert len(messages(tmp_path / "seen")["/camera/detections"]) == 1


async def test_watch_writes_a_recording_that_watch_reads_with_its_times(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.jpg").write_bytes(encoded_image(number))
    async with running_service() as service, aio.Client(service.target) as client:
        for source, bag in ((folder, "first"), (tmp_path / "first", "second")):
            await watch_source(
                client, str(source), ["dog"], bag=tmp_path / bag, as_json=True,
                policy=StreamPolicy(ack_window=0),
            )  # fmt: skip
    first, second = messages(tmp_path / "first"), messages(tmp_path / "second")
    assert first.keys() == {"/camera/image/compressed", "/camera/detections"}
    taken = [stamp_ns(message) for _, message in first["/camera/image/compressed"]]
    assert len(taken) == 3
    assert [stamp_ns(message) for _, message in second["/camera/image/compressed"]] == taken
    answered = [stamp_ns(message) for _, message in second["/camera/detections"]]
    assert answered
    assert set(answered) <= set(taken)
    assert len(list(open_source(str(tmp_path / "second")))) == 3


async def test_the_python_on_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "robots.md").read_text()
    programs = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    (program,) = (one for one in programs if "DetectionBag" in one)
    clip = tmp_path / "clip.mp4"
    write_clip(clip, 10)
    for given, mine in (("deployments/demo/data/pedestrians.mp4", str(clip)), ("person", "dog")):
        assert given in program
        program = program.replace(given, mine)
    async with running_service() as service:
        started = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program.replace("127.0.0.1:50051", service.target),
            cwd=tmp_path, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, wrong = await asyncio.wait_for(started.communicate(), 120)
    assert started.returncode == 0, wrong.decode()
    read = messages(tmp_path / "seen")
    assert read.keys() == {"/camera/detections"}
    assert read["/camera/detections"]
