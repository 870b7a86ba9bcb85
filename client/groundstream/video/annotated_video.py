"""A video file with the service's answers drawn on it.

A frame that was not answered itself shows the boxes of the answered frame nearest in time, so
frames are held back until the next answer has come. Knows no service.
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import TracebackType

from groundstream.types import Detection, FrameResult, OutgoingFrame
from groundstream.video.drawing import LabelledBox, draw_boxes
from groundstream.video.pictures import RGBArray
from groundstream.video.writer import VideoWriter

_MAX_HELD = 150
"""Frames held back at most; beyond, the oldest is written with the last answer there was."""


class AnnotatedVideo:
    """Writes H.264; use it as a context manager, or call `close`."""

    def __init__(self, path: Path, *, fps: float) -> None:
        self._held: deque[tuple[int, RGBArray, float | None]] = deque()
        self._last: FrameResult | None = None
        self._video = VideoWriter(path, fps=fps)

    def __enter__(self) -> AnnotatedVideo:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def add_frame(self, frame: OutgoingFrame, rgb: RGBArray, pts_s: float | None = None) -> None:
        """A frame that is being sent, its pixels, and its time in the source."""
        self._held.append((frame.sequence, rgb, pts_s))
        if len(self._held) > _MAX_HELD:
            self._write(*self._held.popleft()[1:], self._last)

    def add_result(self, result: FrameResult) -> None:
        """An answer; they come in the order of their frames."""
        while self._held and self._held[0][0] <= result.sequence:
            sequence, rgb, pts_s = self._held.popleft()
            self._write(rgb, pts_s, self._nearest(sequence, result))
        self._last = result

    def close(self) -> None:
        """Write what is left and finish the file."""
        while self._held:
            self._write(*self._held.popleft()[1:], self._last)
        self._video.close()

    def _nearest(self, sequence: int, coming: FrameResult) -> FrameResult:
        last = self._last
        if last is None or coming.sequence - sequence <= sequence - last.sequence:
            return coming
        return last

    def _write(self, rgb: RGBArray, pts_s: float | None, result: FrameResult | None) -> None:
        self._video.write(rgb if result is None else draw_result(rgb, result), pts_s)


def draw_result(rgb: RGBArray, result: FrameResult, *, caption: str = "") -> RGBArray:
    """The picture with all boxes of a result."""
    boxes = [
        LabelledBox(detection.box, _name(detection), detection.confidence, detection.label)
        for answer in result.results
        for detection in answer.detections
    ]
    return draw_boxes(rgb, boxes, caption=caption)


def _name(detection: Detection) -> str:
    """The label, with the object's number where it has one."""
    number = "" if detection.track_id is None else f" #{detection.track_id}"
    return detection.label + number
