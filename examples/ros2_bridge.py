"""A ROS 2 node between a camera topic and the service.

    ros2 run ... or: python examples/ros2_bridge.py --ros-args \\
        -p target:=127.0.0.1:50051 -p queries:="['the red mug']" -r image:=/camera/image/compressed

Takes `image` (sensor_msgs/CompressedImage) and `queries` (std_msgs/String, comma separated), gives
`detections` (vision_msgs/Detection2DArray) with the stamps of the pictures they are about. What ROS
does not need is in the functions above the node; docs/robots.md has their table.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Mapping
from typing import Any

from groundstream import aio
from groundstream.exporters import to_detection2d_array
from groundstream.types import FrameResult, OutgoingFrame, StreamPolicy

_READABLE = ("jpeg", "jpg", "png", "webp", "bmp")


def frame_of(message: Any, sequence: int) -> OutgoingFrame:
    """A picture as it is sent on: its bytes untouched, its stamp as capture time.

    Args:
        message: a sensor_msgs/CompressedImage.
        sequence: must increase.

    Raises:
        ValueError: the bytes are no picture in colour (a depth image, say).
    """
    kind = message.format.lower()
    if "compresseddepth" in kind or not any(name in kind for name in _READABLE):
        raise ValueError(f"format {message.format!r} is not one of {', '.join(_READABLE)}")
    stamp = message.header.stamp
    return OutgoingFrame(
        bytes(message.data), sequence, capture_time_ns=stamp.sec * 1_000_000_000 + stamp.nanosec
    )


def fill(message: Any, fields: Mapping[str, Any], elements: Mapping[str, type]) -> Any:
    """Set the fields of a ROS message, of those inside it and of those in its lists; returns it.

    Args:
        message: as its class makes it.
        fields: by ROS's names, as `groundstream.exporters` gives them.
        elements: class of the elements of each list, by the list's name.
    """
    for name, value in fields.items():
        if isinstance(value, Mapping):
            fill(getattr(message, name), value, elements)
        elif isinstance(value, list):
            made = [fill(elements[name](), element, elements) for element in value]
            setattr(message, name, made)
        else:
            setattr(message, name, value)
    return message


def queries_of(text: str) -> list[str]:
    """What the `queries` topic asks for: parts between commas, empty ones left out."""
    return [part.strip() for part in text.split(",") if part.strip()]


class NewestFrame:
    """Frames from ROS's thread to the event loop; one waits, a newer one takes its place."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._newest: OutgoingFrame | None = None
        self._came = asyncio.Event()

    def put(self, frame: OutgoingFrame) -> None:
        """From any thread."""
        self._newest = frame
        self._loop.call_soon_threadsafe(self._came.set)

    async def __aiter__(self) -> AsyncIterator[OutgoingFrame]:
        while True:
            await self._came.wait()
            self._came.clear()
            frame, self._newest = self._newest, None
            if frame is not None:
                yield frame


async def bridge() -> None:
    """The node, until ROS shuts down."""
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import CompressedImage
    from std_msgs.msg import String
    from vision_msgs.msg import Detection2D, Detection2DArray, ObjectHypothesisWithPose

    elements = {"detections": Detection2D, "results": ObjectHypothesisWithPose}
    rclpy.init()
    node = rclpy.create_node("groundstream_bridge")
    target = node.declare_parameter("target", "127.0.0.1:50051").value
    queries = node.declare_parameter("queries", ["person"]).value
    frame_id = node.declare_parameter("frame_id", "camera").value
    detections = node.create_publisher(Detection2DArray, "detections", 10)
    frames, loop = NewestFrame(), asyncio.get_running_loop()
    numbers = iter(range(1 << 62))

    def on_image(message: Any) -> None:
        with contextlib.suppress(ValueError):
            frames.put(frame_of(message, next(numbers)))

    async with (
        aio.Client(target) as client,
        client.watch(aiter(frames), queries, policy=StreamPolicy(max_age_ms=2000.0)) as stream,
    ):

        def on_queries(message: Any) -> None:
            change = stream.set_queries(queries_of(message.data))
            asyncio.run_coroutine_threadsafe(change, loop)

        node.create_subscription(CompressedImage, "image", on_image, qos_profile_sensor_data)
        node.create_subscription(String, "queries", on_queries, 1)
        threading.Thread(target=rclpy.spin, args=(node,), daemon=True).start()
        async for event in stream:
            if isinstance(event, FrameResult):
                fields = to_detection2d_array(event, frame_id=frame_id)
                detections.publish(fill(Detection2DArray(), fields, elements))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(bridge())
