"""As much of ROS 2 as the node needs, with the messages' real fields; installed as modules.

Messages are those of `rosbags`, made with zeros as ROS makes them, and take no other fields; a test
can write what was published as ROS would.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from groundstream.video.detection_bag import filled, vision_types

TYPES = vision_types()
_MESSAGES = {
    "diagnostic_msgs": ("DiagnosticArray", "DiagnosticStatus", "KeyValue"),
    "sensor_msgs": ("CompressedImage",),
    "std_msgs": ("String",),
    "vision_msgs": ("Detection2D", "Detection2DArray", "ObjectHypothesisWithPose"),
}


def message_class(package: str, name: str) -> Callable[[], Any]:
    """What makes a message of zeros."""
    kind = f"{package}/msg/{name}"

    def make() -> Any:
        return Strict(filled(TYPES, kind, {}))

    for constant in ("OK", "WARN", "ERROR"):
        if hasattr(TYPES.types[kind], constant):
            setattr(make, constant, getattr(TYPES.types[kind], constant))
    return make


class Strict:
    """A message that has no fields but its own, as ROS's have none."""

    def __init__(self, real: Any) -> None:
        object.__setattr__(self, "real", real)

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.real, name)
        return Strict(value) if hasattr(value, "__msgtype__") else value

    def __setattr__(self, name: str, value: Any) -> None:
        assert name in self.real.__dataclass_fields__, f"{self.real.__msgtype__} has no {name}"
        plain = [one.real for one in value] if isinstance(value, list) else value
        setattr(self.real, name, plain)


@dataclass
class Publisher:
    """Keeps what was published."""

    messages: list[Any] = field(default_factory=list)

    def publish(self, message: Strict) -> None:
        # What ROS cannot write it would refuse here.
        TYPES.serialize_cdr(message.real, message.real.__msgtype__)
        self.messages.append(message.real)


class Ros:
    """One process with one node."""

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.parameters = parameters
        self.declared: dict[str, Any] = {}
        self.publishers: dict[str, Publisher] = {}
        self.subscriptions: dict[str, Callable[[Any], None]] = {}
        self.fatal: list[str] = []
        self.is_destroyed = False
        self._down = threading.Event()

    # ---- rclpy ----

    def init(self) -> None:
        self._down.clear()

    def ok(self) -> bool:
        return not self._down.is_set()

    def shutdown(self) -> None:
        assert self.ok(), "ROS is shut down twice"
        self._down.set()

    def spin(self, _node: Any) -> None:
        self._down.wait()

    def create_node(self, _name: str) -> Ros:
        return self

    # ---- the node ----

    def declare_parameter(self, name: str, default: Any) -> Any:
        self.declared[name] = default
        return SimpleNamespace(value=self.parameters.get(name, default))

    def create_publisher(self, _kind: Any, topic: str, _depth: int) -> Publisher:
        return self.publishers.setdefault(topic, Publisher())

    def create_subscription(
        self, _kind: Any, topic: str, callback: Callable[[Any], None], _qos: Any
    ) -> None:
        self.subscriptions[topic] = callback

    def get_clock(self) -> Any:
        now = SimpleNamespace(to_msg=lambda: SimpleNamespace(sec=1_700_000_000, nanosec=5))
        return SimpleNamespace(now=lambda: now)

    def get_logger(self) -> Any:
        return SimpleNamespace(fatal=self.fatal.append)

    def destroy_node(self) -> None:
        self.is_destroyed = True


def install(ros: Ros, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put it where the node imports from, and import the node afresh."""
    rclpy = ModuleType("rclpy")
    for name in ("init", "ok", "shutdown", "spin", "create_node"):
        setattr(rclpy, name, getattr(ros, name))
    qos = ModuleType("rclpy.qos")
    qos.qos_profile_sensor_data = object()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "rclpy", rclpy)
    monkeypatch.setitem(sys.modules, "rclpy.qos", qos)
    for package, names in _MESSAGES.items():
        messages = ModuleType(f"{package}.msg")
        for name in names:
            setattr(messages, name, message_class(package, name))
        monkeypatch.setitem(sys.modules, package, ModuleType(package))
        monkeypatch.setitem(sys.modules, f"{package}.msg", messages)
    monkeypatch.delitem(sys.modules, "groundstream_ros.node", raising=False)
    import groundstream_ros.node

    monkeypatch.delitem(sys.modules, "groundstream_ros.node")
    return groundstream_ros.node
