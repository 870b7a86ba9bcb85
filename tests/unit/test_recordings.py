"""Robots' recordings as sources, written and read by rosbags; no ROS."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from groundstream.errors import SourceError
from groundstream.events import SourceClockJumped, SourceEvent, SourceResized
from groundstream.video.recordings import Recording
from groundstream.video.sources import open_source

pytest.importorskip("rosbags", reason="pip install 'groundstream-client[ros]'")
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

TYPES = get_typestore(Stores.ROS2_HUMBLE)
NS = 1_000_000_000
START_S = 1_700_000_000


def header(at_s: float) -> Any:
    second, rest = divmod(round(at_s * NS), NS)
    stamp = TYPES.types["builtin_interfaces/msg/Time"](sec=second, nanosec=rest)
    return TYPES.types["std_msgs/msg/Header"](stamp=stamp, frame_id="camera")


def raw(at_s: float, pixels: np.ndarray, encoding: str, *, padding: int = 0) -> Any:
    """An uncompressed picture; lines may be longer than their pixels."""
    height, width = pixels.shape[:2]
    lines = pixels.reshape(height, -1).view(np.uint8)
    lines = np.pad(lines, ((0, 0), (0, padding)))
    return TYPES.types["sensor_msgs/msg/Image"](
        header=header(at_s), height=height, width=width, encoding=encoding, is_bigendian=0,
        step=lines.shape[1], data=lines.reshape(-1),
    )  # fmt: skip


def compressed(at_s: float, pixels: np.ndarray) -> Any:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return TYPES.types["sensor_msgs/msg/CompressedImage"](
        header=header(at_s), format="png", data=np.frombuffer(buffer.getvalue(), np.uint8)
    )


def record(
    path: Path, topics: dict[str, list[Any]], plugin: StoragePlugin = StoragePlugin.MCAP
) -> Path:
    """A rosbag2 in a folder, one message every 100 ms."""
    with Writer(path, version=9, storage_plugin=plugin) as writer:
        for topic, messages in topics.items():
            kind = messages[0].__msgtype__
            connection = writer.add_connection(topic, kind, typestore=TYPES)
            for number, message in enumerate(messages):
                logged_ns = START_S * NS + number * NS // 10
                writer.write(connection, logged_ns, TYPES.serialize_cdr(message, kind))
    return path


PIXELS = np.arange(2 * 4 * 3, dtype=np.uint8).reshape(2, 4, 3)


@pytest.mark.parametrize("plugin", list(StoragePlugin))
def test_pictures_and_their_times_come_back(plugin: StoragePlugin, tmp_path: Path) -> None:
    messages = [compressed(START_S + 0.25 * number, PIXELS + number) for number in range(4)]
    folder = record(tmp_path / "drive", {"/camera/image": messages}, plugin)
    source = open_source(str(folder))
    assert isinstance(source, Recording)
    for _ in range(2):  # It can be read again.
        pictures = list(source)
        assert [picture.pts_s for picture in pictures] == pytest.approx([0, 0.25, 0.5, 0.75])
        assert [picture.capture_time_ns for picture in pictures] == [
            round((START_S + 0.25 * number) * NS) for number in range(4)
        ]
        assert all((one.rgb == PIXELS + n).all() for n, one in enumerate(pictures))
    if plugin is StoragePlugin.MCAP:
        (file,) = folder.glob("*.mcap")
        assert len(list(open_source(str(file)))) == 4  # Without its folder, too.


@pytest.mark.parametrize(
    ("encoding", "pixels", "seen"),
    [
        ("rgb8", PIXELS, PIXELS),
        ("bgr8", PIXELS, PIXELS[:, :, ::-1]),
        ("8UC3", PIXELS, PIXELS[:, :, ::-1]),
        ("rgba8", np.dstack([PIXELS, PIXELS[:, :, :1]]), PIXELS),
        ("bgra8", np.dstack([PIXELS, PIXELS[:, :, :1]]), PIXELS[:, :, ::-1]),
        ("mono8", PIXELS[:, :, 0], np.repeat(PIXELS[:, :, :1], 3, axis=2)),
        (
            "mono16",
            PIXELS[:, :, 0].astype("<u2") * 256 + 7,
            np.repeat(PIXELS[:, :, :1], 3, axis=2),
        ),
    ],
)
def test_uncompressed_pictures_are_understood(
    encoding: str, pixels: np.ndarray, seen: np.ndarray, tmp_path: Path
) -> None:
    message = raw(START_S, np.ascontiguousarray(pixels), encoding, padding=5)
    (picture,) = open_source(str(record(tmp_path / "drive", {"/image": [message]})))
    assert (picture.rgb == seen).all()


def test_one_of_several_cameras_is_named(tmp_path: Path) -> None:
    left, right = [compressed(START_S, PIXELS)], [compressed(START_S, PIXELS + 1)]
    folder = str(record(tmp_path / "drive", {"/left": left, "/right": right}))
    with pytest.raises(SourceError, match=r"several topics.*drive#/left \(/left, /right\)"):
        open_source(folder)
    with pytest.raises(SourceError, match="no pictures of /up; there are /left, /right"):
        open_source(f"{folder}#/up")
    (picture,) = open_source(f"{folder}#/right")
    assert (picture.rgb == PIXELS + 1).all()


def test_what_happens_in_a_recording_is_told(tmp_path: Path) -> None:
    messages = [compressed(START_S + at_s, PIXELS) for at_s in (0.0, 0.1, 500.0)]
    messages.append(compressed(START_S + 500.1, np.zeros((5, 6, 3), np.uint8)))
    folder = record(tmp_path / "drive", {"/image": messages})
    events: list[SourceEvent] = []
    pictures = list(open_source(str(folder), on_event=events.append))
    assert events == [SourceClockJumped(pytest.approx(499.9)), SourceResized(6, 5)]
    assert pictures[-1].pts_s < 2.0


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.mcap"
    damaged.write_bytes(b"no recording")
    with pytest.raises(SourceError, match=r"cannot open .*damaged\.mcap"):
        open_source(str(damaged))
    depth = raw(START_S, np.zeros((2, 4), "<f4"), "32FC1")
    with pytest.raises(SourceError, match="as 32FC1; known are rgb8"):
        list(open_source(str(record(tmp_path / "depth", {"/depth": [depth]}))))
    broken = compressed(START_S, PIXELS)
    broken.data = broken.data[:20]
    with pytest.raises(SourceError, match=r"picture 0 of /image in .*broken cannot be read"):
        list(open_source(str(record(tmp_path / "broken", {"/image": [broken]}))))
