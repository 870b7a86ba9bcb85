"""A stream as a robot's recording: pictures and `vision_msgs/Detection2DArray` in MCAP; no ROS.

Uses `rosbags`, an extra (`pip install 'groundstream-client[ros]'`). Knows no service.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from groundstream.errors import SettingsError
from groundstream.exporters import to_detection2d_array, to_header
from groundstream.types import FrameResult, OutgoingFrame

DETECTIONS = "vision_msgs/msg/Detection2DArray"
PICTURE = "sensor_msgs/msg/CompressedImage"
_VERSION = 9
_MAX_UNDER_WAY = 10_000
"""Frames without an answer whose times are kept; older ones get none any more."""
_VISION_MSGS = {
    "Point2D": "float64 x\nfloat64 y",
    "Pose2D": "Point2D position\nfloat64 theta",
    "BoundingBox2D": "Pose2D center\nfloat64 size_x\nfloat64 size_y",
    "ObjectHypothesis": "string class_id\nfloat64 score",
    "ObjectHypothesisWithPose": (
        "ObjectHypothesis hypothesis\ngeometry_msgs/PoseWithCovariance pose"
    ),
    "Detection2D": (
        "std_msgs/Header header\nObjectHypothesisWithPose[] results\nBoundingBox2D bbox\nstring id"
    ),
    "Detection2DArray": "std_msgs/Header header\nDetection2D[] detections",
}
"""Fields of vision_msgs 4, which Humble and all later distributions have; rosbags brings none of
them. A recording holds these definitions, so that its readers need not know them."""


def vision_types() -> Any:
    """The message types of ROS 2 Humble with those of vision_msgs, as `rosbags` has them.

    Raises:
        SettingsError: `rosbags` is not installed.
    """
    try:
        from rosbags.typesys import Stores, get_types_from_msg, get_typestore
    except ImportError:
        raise SettingsError(
            "a robot's recording needs rosbags; pip install 'groundstream-client[ros]'"
        ) from None
    types = get_typestore(Stores.ROS2_HUMBLE)
    for name, fields in _VISION_MSGS.items():
        types.register(get_types_from_msg(fields, f"vision_msgs/msg/{name}"))
    return types


def filled(types: Any, kind: str, fields: Mapping[str, Any]) -> Any:
    """A message whose other fields are zero or empty, as ROS makes them.

    Args:
        types: where `kind` is known; see `vision_types`.
        kind: such as `vision_msgs/msg/Detection2DArray`.
        fields: by ROS's names, as `groundstream.exporters` gives them.

    Raises:
        KeyError: `kind` has no field of such a name.
    """
    from rosbags.interfaces import Nodetype

    def value(form: Any, given: Any) -> Any:
        node, detail = form
        if node is Nodetype.NAME:
            return filled(types, detail, given or {})
        if node is Nodetype.BASE:
            zero = "" if detail[0] == "string" else 0
            return zero if given is None else given
        element, length = detail
        if element[0] is Nodetype.NAME:
            return [value(element, one) for one in given or ()]
        if given is None:
            return np.zeros(length, element[1][0])
        return np.asarray(given, element[1][0])

    _, forms = types.fielddefs[kind]
    unknown = fields.keys() - {name for name, _ in forms}
    if unknown:
        raise KeyError(f"{kind} has no {', '.join(sorted(unknown))}")
    return types.types[kind](**{name: value(form, fields.get(name)) for name, form in forms})


class DetectionBag:
    """Writes a rosbag2: a folder with an MCAP file of its name. Use it as a context manager.

    A picture and the boxes in it have the same stamp, and are logged at it: the time at which the
    picture was taken, that of the recording where it came from one.
    """

    def __init__(
        self, path: Path, *, topic: str = "/camera", frame_id: str = "camera", pictures: bool = True
    ) -> None:
        """Begin a recording.

        Args:
            path: folder to make.
            topic: pictures are in `image/compressed` under it, boxes in `detections`.
            frame_id: the camera's name in the robot's frame tree.
            pictures: record them, too.

        Raises:
            SettingsError: `rosbags` is not installed, or the folder is there, cannot be made or is
                named like a file.
        """
        self._types = vision_types()
        from rosbags.rosbag2 import StoragePlugin, Writer, WriterError

        if path.suffix == ".mcap":
            raise SettingsError(
                f"a recording is a folder: name {path.with_suffix('')}, and its file will be "
                f"{path.with_suffix('') / path.name}"
            )
        try:
            self._writer = Writer(path, version=_VERSION, storage_plugin=StoragePlugin.MCAP)
            self._writer.open()
        except (WriterError, OSError) as error:
            raise SettingsError(
                f"cannot write a recording to {path}: {error}; name a folder that is not there yet"
            ) from error
        self._frame_id = frame_id
        self._detections = self._added(f"{topic}/detections", DETECTIONS)
        self._pictures = self._added(f"{topic}/image/compressed", PICTURE) if pictures else None
        self._taken_ns: dict[int, int] = {}
        """Of the frames under way that came with a time of their own."""

    def __enter__(self) -> DetectionBag:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        # MCAP's index comes last; without it, what was recorded before an error is lost, too.
        self._writer.close()

    def add_frame(self, frame: OutgoingFrame, taken_ns: int | None = None) -> None:
        """A JPEG that is being sent, and when it was taken if that is not its capture time."""
        if taken_ns is not None:
            self._taken_ns[frame.sequence] = taken_ns
            if len(self._taken_ns) > _MAX_UNDER_WAY:
                del self._taken_ns[next(iter(self._taken_ns))]
        if self._pictures is None:
            return
        stamp_ns = frame.capture_time_ns if taken_ns is None else taken_ns
        header = to_header(stamp_ns, self._frame_id)
        data = np.frombuffer(frame.encoded, np.uint8)
        fields = {"header": header, "format": "jpeg", "data": data}
        self._write(self._pictures, PICTURE, stamp_ns, fields)

    def add_result(self, result: FrameResult) -> None:
        """An answer; they come in the order of their frames."""
        stamp_ns = self._taken_ns.get(result.sequence, result.capture_time_ns)
        # What was superseded is not asked for any more.
        for sequence in [one for one in self._taken_ns if one <= result.sequence]:
            del self._taken_ns[sequence]
        fields = to_detection2d_array(result, frame_id=self._frame_id, stamp_ns=stamp_ns)
        self._write(self._detections, DETECTIONS, stamp_ns, fields)

    def _added(self, topic: str, kind: str) -> Any:
        return self._writer.add_connection(topic, kind, typestore=self._types)

    def _write(self, connection: Any, kind: str, stamp_ns: int, fields: Mapping[str, Any]) -> None:
        message = filled(self._types, kind, fields)
        self._writer.write(connection, stamp_ns, self._types.serialize_cdr(message, kind))
