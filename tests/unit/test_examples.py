"""The robot against a service; what the ROS bridge does to messages, without ROS."""

from __future__ import annotations

import asyncio
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from examples.robot import run
from examples.ros2_bridge import NewestFrame, fill, frame_of, queries_of
from groundstream.exporters import to_detection2d_array
from tests.in_process import running_service
from tests.pictures import encoded_image
from tests.unit.test_exporters import CAT, DOG, result


# The fields of ROS's messages, by their .msg files; like ROS's, they take no others.
@dataclass(slots=True)
class Time:
    sec: int = 0
    nanosec: int = 0


@dataclass(slots=True)
class Header:
    stamp: Time = field(default_factory=Time)
    frame_id: str = ""


@dataclass(slots=True)
class Point2D:
    x: float = 0.0
    y: float = 0.0


@dataclass(slots=True)
class Pose2D:
    position: Point2D = field(default_factory=Point2D)
    theta: float = 0.0


@dataclass(slots=True)
class BoundingBox2D:
    center: Pose2D = field(default_factory=Pose2D)
    size_x: float = 0.0
    size_y: float = 0.0


@dataclass(slots=True)
class ObjectHypothesis:
    class_id: str = ""
    score: float = 0.0


@dataclass(slots=True)
class ObjectHypothesisWithPose:
    hypothesis: ObjectHypothesis = field(default_factory=ObjectHypothesis)
    pose: object = None


@dataclass(slots=True)
class Detection2D:
    header: Header = field(default_factory=Header)
    results: list = field(default_factory=list)
    bbox: BoundingBox2D = field(default_factory=BoundingBox2D)
    id: str = ""


@dataclass(slots=True)
class Detection2DArray:
    header: Header = field(default_factory=Header)
    detections: list = field(default_factory=list)


ELEMENTS = {"detections": Detection2D, "results": ObjectHypothesisWithPose}


def image(kind: str) -> SimpleNamespace:
    header = Header(Time(sec=1_700_000_001, nanosec=234_567_891))
    return SimpleNamespace(header=header, format=kind, data=bytearray(b"bytes"))


def test_a_message_says_what_the_result_said() -> None:
    fields = to_detection2d_array(result(4, DOG, CAT), frame_id="front")
    message = fill(Detection2DArray(), fields, ELEMENTS)
    assert message.header == Header(Time(1_700_000_001, 234_567_891), "front")
    dog, cat = message.detections
    assert dog.bbox == BoundingBox2D(Pose2D(Point2D(25.0, 40.0), 0.0), 30.0, 40.0)
    assert dog.results[0].hypothesis == ObjectHypothesis("dog", 0.75)
    assert (dog.id, cat.id) == ("7", "")
    assert dog.header is not cat.header


def test_a_picture_goes_on_as_it_is_with_its_stamp() -> None:
    frame = frame_of(image("rgb8; jpeg compressed bgr8"), 9)
    assert frame.encoded == b"bytes"
    assert frame.sequence == 9
    assert frame.capture_time_ns == 1_700_000_001_234_567_891


@pytest.mark.parametrize("kind", ["16UC1; compressedDepth png", "h264", ""])
def test_what_is_no_colour_picture_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="is not one of"):
        frame_of(image(kind), 0)


def test_queries_by_topic() -> None:
    assert queries_of("dog, the red mug,, ") == ["dog", "the red mug"]


async def test_a_newer_frame_takes_the_place_of_one_that_waits() -> None:
    frames = NewestFrame()
    for number in (1, 2):
        frames.put(frame_of(image("jpeg"), number))
    first = await anext(aiter(frames))
    assert first.sequence == 2


async def test_the_robot_closes_its_books(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for number in range(4):
        (tmp_path / f"{number}.jpg").write_bytes(encoded_image(number))
    async with running_service() as service:
        books = await run(service.target, str(tmp_path), ["dog"])
    assert books.received == 4
    assert books.in_flight == 0
    assert books.balanced
    assert "from here on the answers are about dog" in capsys.readouterr().out


@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
async def test_the_python_on_a_page_runs_as_it_stands(page: str) -> None:
    root = Path(__file__).parents[2]
    (program,) = re.findall(r"^```python\n(.*?)^```$", (root / page).read_text(), re.DOTALL | re.M)
    assert "127.0.0.1:50051" in program
    async with running_service() as service:
        started = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program.replace("127.0.0.1:50051", service.target), cwd=root,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        said, wrong = await asyncio.wait_for(started.communicate(), 120)
    assert started.returncode == 0, wrong.decode()
    assert said.strip()
