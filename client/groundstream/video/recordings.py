"""A robot's recording as a source of pictures: MCAP, rosbag2 and rosbag1, read without ROS.

Uses `rosbags`, an extra (`pip install 'groundstream-client[ros]'`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from groundstream.errors import SettingsError, SourceError
from groundstream.events import SourceClockJumped, SourceEvent, SourceResized
from groundstream.video.clock import SteadyClock
from groundstream.video.ffmpeg import DEFAULT_FPS
from groundstream.video.live import SourceFrame
from groundstream.video.pictures import UNREADABLE, RGBArray, decode_picture

_COMPRESSED = "sensor_msgs/msg/CompressedImage"
_RAW = "sensor_msgs/msg/Image"
_KINDS = (_COMPRESSED, _RAW)
_NS_PER_S = 1_000_000_000
_CHANNELS = {
    "rgb8": (3, (0, 1, 2)),
    "bgr8": (3, (2, 1, 0)),
    "rgba8": (4, (0, 1, 2)),
    "bgra8": (4, (2, 1, 0)),
    "8UC3": (3, (2, 1, 0)),
    "8UC4": (4, (2, 1, 0)),
    "mono8": (1, (0, 0, 0)),
    "8UC1": (1, (0, 0, 0)),
}
"""Bytes of a pixel, and which of them are red, green and blue. What has no names of colours is
OpenCV's, blue first."""
_DEEP = ("mono16", "16UC1")


class Recording:
    """The pictures of one topic, in the order in which they were recorded."""

    is_live = False

    def __init__(
        self,
        path: Path,
        topic: str = "",
        *,
        on_event: Callable[[SourceEvent], object] | None = None,
    ) -> None:
        """Look what is in it.

        Args:
            path: an .mcap, .db3 or .bag file, or the folder of a rosbag2.
            topic: whose pictures; may be empty where only one topic has any.
            on_event: told when the pictures change their size or their clock jumps.

        Raises:
            SettingsError: `rosbags` is not installed.
            SourceError: it cannot be read, or holds no pictures of that topic.
        """
        try:
            from rosbags.highlevel import AnyReader
            from rosbags.typesys import Stores, get_typestore
        except ImportError:
            raise SettingsError(
                f"{path.name} is a robot's recording, and reading it needs rosbags; "
                "pip install 'groundstream-client[ros]'"
            ) from None
        self._path = path
        self._on_event = on_event
        # Recordings of before ROS 2 Iron do not say what their messages look like.
        types = get_typestore(Stores.ROS2_HUMBLE)
        self._reader: Callable[[], Any] = lambda: AnyReader([path], default_typestore=types)
        with self._opened() as reader:
            found: dict[str, list[Any]] = {}
            for connection in reader.connections:
                if connection.msgtype in _KINDS:
                    found.setdefault(connection.topic, []).append(connection)
            self._topic = self._chosen(topic, sorted(found))
            count = sum(connection.msgcount for connection in found[self._topic])
            duration_s = reader.duration / _NS_PER_S
            self.fps = count / duration_s if count > 1 and duration_s > 0 else DEFAULT_FPS
            """Pictures per second, on the whole."""

    def __repr__(self) -> str:
        return f"Recording({str(self._path)!r}, {self._topic!r})"

    def __iter__(self) -> Iterator[SourceFrame]:
        clock = SteadyClock(1.0 / self.fps)
        size: tuple[int, ...] | None = None
        with self._opened() as reader:
            connections = [
                connection
                for connection in reader.connections
                if connection.topic == self._topic and connection.msgtype in _KINDS
            ]
            for number, (connection, logged_ns, raw) in enumerate(
                self._guarded(reader.messages(connections=connections))
            ):
                try:
                    message = reader.deserialize(raw, connection.msgtype)
                    rgb = self._pixels(message, connection.msgtype)
                except UNREADABLE as error:
                    raise SourceError(
                        f"picture {number} of {self._topic} in {self._path} cannot be read: {error}"
                    ) from error
                stamp = message.header.stamp
                # A driver that sets no time leaves zero.
                taken_ns = stamp.sec * _NS_PER_S + stamp.nanosec or logged_ns
                pts_s, jump_s = clock.show(taken_ns / _NS_PER_S)
                if jump_s is not None:
                    self._tell(SourceClockJumped(jump_s))
                if size is not None and rgb.shape != size:
                    self._tell(SourceResized(rgb.shape[1], rgb.shape[0]))
                size = rgb.shape
                yield SourceFrame(rgb, pts_s, taken_ns)

    def _chosen(self, topic: str, found: list[str]) -> str:
        names = ", ".join(found)
        if topic in found:
            return topic
        if not found:
            raise SourceError(f"{self._path} holds no pictures ({' or '.join(_KINDS)})")
        if topic:
            raise SourceError(f"{self._path} has no pictures of {topic}; there are {names}")
        if len(found) > 1:
            raise SourceError(
                f"{self._path} has pictures of several topics; add one of them, for example "
                f"{self._path.name}#{found[0]} ({names})"
            )
        return found[0]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        with contextlib.ExitStack() as stack:
            try:
                reader = stack.enter_context(self._reader())
            except Exception as error:  # Readers of formats raise what they like.
                raise SourceError(f"cannot open {self._path}: {error}") from error
            yield reader

    def _guarded(self, messages: Iterator[Any]) -> Iterator[Any]:
        try:
            yield from messages
        except SourceError:
            raise
        except Exception as error:
            raise SourceError(f"reading {self._path} failed: {error}") from error

    def _pixels(self, message: Any, kind: str) -> RGBArray:
        if kind == _COMPRESSED:
            content = bytes(message.data)
            # Depth pictures carry a header of their own before the PNG.
            if "compressedDepth" in message.format:
                raise SourceError(f"{self._topic} holds depth, not pictures; choose another topic")
            return decode_picture(content)
        height, width, step = message.height, message.width, message.step
        lines = np.asarray(message.data, dtype=np.uint8)[: height * step].reshape(height, step)
        if message.encoding in _DEEP:
            # The upper byte is the picture; which one that is the message says.
            upper = lines[:, (0 if message.is_bigendian else 1) : 2 * width : 2]
            return np.repeat(upper[:, :, None], 3, axis=2)
        if message.encoding not in _CHANNELS:
            known = ", ".join((*_CHANNELS, *_DEEP))
            raise SourceError(
                f"{self._topic} holds pictures as {message.encoding}; known are {known}"
            )
        channels, order = _CHANNELS[message.encoding]
        pixels = lines[:, : width * channels].reshape(height, width, channels)
        return np.ascontiguousarray(pixels[:, :, list(order)])

    def _tell(self, event: SourceEvent) -> None:
        if self._on_event is not None:
            self._on_event(event)
