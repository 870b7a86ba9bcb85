"""The ROS 2 node without ROS: its logic against the service, its messages against their fields."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml

pytest.importorskip("rosbags", reason="pip install 'groundstream-client[ros]'")
from groundstream.errors import InvalidQuery, SettingsError
from groundstream.exporters import to_detection2d_array
from groundstream_ros.bridge import (
    Books,
    Bridge,
    Newest,
    Parameters,
    fill,
    frame_of,
    queries_of,
    to_diagnostics,
)
from tests.fake_ros import TYPES, Ros, install, message_class
from tests.fault_proxy import fault_proxy
from tests.in_process import running_service
from tests.pictures import encoded_image
from tests.unit.test_exporters import CAT, DOG, result
from tests.waiting import eventually

PACKAGE = Path(__file__).parents[2] / "ros2" / "groundstream_ros"
ELEMENTS = {
    "detections": message_class("vision_msgs", "Detection2D"),
    "results": message_class("vision_msgs", "ObjectHypothesisWithPose"),
}
WAIT_S = 20.0


def image(encoded: bytes = b"bytes", kind: str = "jpeg", sec: int = 1_700_000_001) -> Any:
    message = message_class("sensor_msgs", "CompressedImage")()
    message.header.stamp.sec, message.header.stamp.nanosec = sec, 234_567_891
    message.header.frame_id = "front"
    message.format = kind
    message.data = np.frombuffer(encoded, np.uint8)
    return message


# ---- messages ----


def test_a_message_says_what_the_result_said_also_after_it_was_written() -> None:
    given = to_detection2d_array(result(4, DOG, CAT), frame_id="front")
    message = fill(message_class("vision_msgs", "Detection2DArray")(), given, ELEMENTS).real
    kind = message.__msgtype__
    read = TYPES.deserialize_cdr(TYPES.serialize_cdr(message, kind), kind)
    assert (read.header.stamp.sec, read.header.stamp.nanosec) == (1_700_000_001, 234_567_891)
    dog, cat = read.detections
    assert (dog.bbox.center.position.x, dog.bbox.center.position.y) == (25.0, 40.0)
    assert (dog.bbox.size_x, dog.bbox.size_y, dog.bbox.center.theta) == (30.0, 40.0, 0.0)
    hypothesis = dog.results[0].hypothesis
    assert (hypothesis.class_id, hypothesis.score) == ("dog", 0.75)
    assert (dog.id, cat.id) == ("7", "")
    assert dog.header == cat.header == read.header


def test_a_picture_goes_on_as_it_is_with_its_stamp() -> None:
    frame = frame_of(image(kind="rgb8; jpeg compressed bgr8"), 9)
    assert (frame.encoded, frame.sequence) == (b"bytes", 9)
    assert frame.capture_time_ns == 1_700_000_001_234_567_891


@pytest.mark.parametrize("kind", ["16UC1; compressedDepth png", "h264", ""])
def test_what_is_no_colour_picture_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="is not one of"):
        frame_of(image(kind=kind), 0)


def test_queries_by_topic() -> None:
    assert queries_of("dog, the red mug,, ") == ["dog", "the red mug"]


async def test_the_newest_takes_the_place_of_what_waits_and_is_counted() -> None:
    items: Newest[int] = Newest()
    for number in (1, 2, 3):
        items.put(number)
    assert await anext(aiter(items)) == 3
    assert items.num_replaced == 2


@pytest.mark.parametrize(
    ("books", "level", "message"),
    [
        (Books(), "ERROR", "not connected yet"),
        (Books(trouble="", refused_queries="too long"), "WARN", "too long"),
        (Books(trouble=""), "OK", "answering"),
    ],
)
def test_diagnostics_say_the_worst(books: Books, level: str, message: str) -> None:
    (status,) = to_diagnostics(books, 4, {"sec": 1, "nanosec": 2})["status"]
    assert (status["level"], status["message"]) == (level, message)
    assert {"key": "pictures replaced by newer ones", "value": "4"} in status["values"]


# ---- parameters ----


def declared(**given: Any) -> Parameters:
    return Parameters.declared(lambda name, default: given.get(name, default))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": "robot"}, "parameter target: 'robot' is not host:port"),
        ({"mode": "fast"}, "parameter mode: 'fast' is not follow or ground"),
        ({"max_age_ms": -1.0}, "parameter max_age_ms: -1.0"),
        ({"max_age_ms": float("nan")}, "parameter max_age_ms: nan"),
        ({"queries": []}, "parameter queries"),
        ({"queries": None}, "parameter queries"),
        ({"queries": ["dog", " "]}, "parameter queries"),
    ],
)
def test_a_parameter_without_meaning_is_named(given: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        declared(**given)


def test_the_parameter_file_holds_every_parameter_with_its_default() -> None:
    path = PACKAGE / "config" / "groundstream.yaml"
    (node,) = yaml.safe_load(path.read_text()).values()
    given = {key: tuple(v) if isinstance(v, list) else v for key, v in node.items()}
    assert given[("ros__parameters")] == {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in asdict(Parameters()).items()
    }
    assert declared(**given["ros__parameters"]) == Parameters()


# ---- the bridge, against the service ----


async def test_boxes_come_back_with_the_headers_of_their_pictures() -> None:
    published: list[dict[str, Any]] = []
    async with running_service() as service:
        bridge = Bridge(declared(target=service.target, queries=["dog"]), published.append)
        running = asyncio.create_task(bridge.run())
        bridge.take_image(image(kind="h264"))
        await eventually(lambda: not bridge.books.trouble)
        for number in range(5):
            bridge.take_image(image(encoded_image(number), sec=1_700_000_000 + number))
            await eventually(lambda n=number: bridge.books.published > n)
        await eventually(lambda: published[-1]["detections"])
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert [one["header"]["stamp"]["sec"] for one in published[:5]] == [
        1_700_000_000 + number for number in range(5)
    ]
    assert {one["header"]["frame_id"] for one in published} == {"front"}
    assert (bridge.books.taken, bridge.books.unreadable, bridge.books.published) == (6, 1, 5)
    assert not bridge._frame_ids


async def test_queries_change_and_refused_ones_leave_the_old_ones() -> None:
    async with running_service() as service:
        bridge = Bridge(declared(target=service.target, queries=["dog"]), lambda _: None)
        running = asyncio.create_task(bridge.run())
        bridge.take_queries("cat, bird")
        await eventually(lambda: bridge._queries == ["cat", "bird"])
        bridge.take_queries("x" * 2001)
        await eventually(lambda: bridge.books.refusal)
        # Else the client would ask for the refused ones again after a break.
        await eventually(lambda: bridge._wanted == ["cat", "bird"])
        assert bridge._queries == ["cat", "bird"]
        bridge.take_queries("dog")
        await eventually(lambda: bridge._queries == ["dog"])
        assert not bridge.books.refusal
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_queries_of_the_parameters_that_cannot_be_asked_end_it() -> None:
    async with running_service() as service:
        bridge = Bridge(declared(target=service.target, queries=["x" * 2001]), lambda _: None)
        with pytest.raises(InvalidQuery, match="parameter queries: "):
            await asyncio.wait_for(bridge.run(), WAIT_S)


async def test_it_waits_for_a_service_and_survives_a_broken_connection() -> None:
    published: list[dict[str, Any]] = []
    async with running_service() as service, fault_proxy(service.target) as proxy:
        proxy.cut(refuse=True)
        bridge = Bridge(
            declared(target=proxy.address, queries=["dog"]), published.append, max_pause_s=0.2
        )
        running = asyncio.create_task(bridge.run())
        bridge.take_queries("cat")  # While there is no service.
        await eventually(lambda: "waiting for a service" in bridge.books.trouble)
        proxy.flow()
        await eventually(lambda: bridge._queries == ["cat"])
        bridge.take_image(image(encoded_image(1)))
        await eventually(lambda: bridge.books.published == 1)
        proxy.cut(refuse=True)
        await eventually(lambda: bridge.books.reconnects)
        assert "no connection for" in bridge.books.trouble
        proxy.flow()
        await eventually(lambda: not bridge.books.trouble)
        bridge.take_image(image(encoded_image(2)))
        await eventually(lambda: bridge.books.published == 2)
        assert bridge._queries == ["cat"]
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


# ---- the node ----


async def test_the_node_publishes_what_ros_can_write(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_service() as service:
        ros = Ros({"target": service.target, "queries": ["dog"], "frame_id": "roof"})
        node = install(ros, monkeypatch)
        running = asyncio.create_task(asyncio.to_thread(node.main))
        await eventually(lambda: "image" in ros.subscriptions)
        ros.subscriptions["queries"](SimpleNamespace(data="dog, cat"))
        detections = ros.publishers["detections"].messages
        for number in range(200):
            ros.subscriptions["image"](image(encoded_image(number)))
            await asyncio.sleep(0.05)
            if any(message.detections for message in detections):
                break
        found = next(message for message in detections if message.detections)
        assert found.header.frame_id == "roof"
        assert found.header.stamp.sec == 1_700_000_001
        assert found.detections[0].results[0].hypothesis.class_id == "dog"
        await eventually(lambda: ros.publishers["/diagnostics"].messages[-1].status[0].level == 0)
        ros.shutdown()
        await asyncio.wait_for(running, WAIT_S)
    assert ros.is_destroyed
    assert ros.fatal == []
    assert ros.declared.keys() == asdict(Parameters()).keys()


def test_the_node_says_which_parameter_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    ros = Ros({"mode": "fast"})
    node = install(ros, monkeypatch)
    with pytest.raises(SystemExit, match="1"):
        node.main()
    assert ros.fatal == ["parameter mode: 'fast' is not follow or ground"]
    assert ros.is_destroyed


# ---- the package ----


def test_the_logic_imports_nothing_of_ros() -> None:
    code = "import sys, groundstream_ros.bridge; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": f"{PACKAGE}:{PACKAGE.parents[1] / 'client'}"},
    )  # fmt: skip
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert not loaded & {"rclpy", "vision_msgs", "sensor_msgs", "std_msgs", "rosbags", "numpy"}


def test_the_package_builds_with_all_that_ros_looks_for(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "build",
         "--build-base", str(tmp_path / "build"), "install_data", "--install-dir",
         str(tmp_path / "installed")],
        cwd=PACKAGE, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    modules = {path.name for path in (tmp_path / "build").rglob("*.py")}
    assert modules == {"__init__.py", "bridge.py", "node.py"}
    share = tmp_path / "installed" / "share"
    assert (share / "ament_index/resource_index/packages/groundstream_ros").is_file()
    launch = share / "groundstream_ros/launch/groundstream.launch.py"
    compile(launch.read_text(), str(launch), "exec")
    assert (share / "groundstream_ros/config/groundstream.yaml").is_file()
    described = ElementTree.parse(share / "groundstream_ros/package.xml").getroot()
    assert described.findtext("export/build_type") == "ament_python"
    info = next(tmp_path.glob("*.egg-info"))
    metadata = (info / "PKG-INFO").read_text()
    assert f"Version: {described.findtext('version')}\n" in metadata
    assert "bridge = groundstream_ros.node:main" in (info / "entry_points.txt").read_text()
    needed = {one.text for one in described.findall("exec_depend")}
    imported = {"rclpy", "diagnostic_msgs", "sensor_msgs", "std_msgs", "vision_msgs"}
    assert imported | {"launch", "launch_ros"} == needed
