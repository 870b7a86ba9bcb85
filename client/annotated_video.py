"""A video file with the service's answers drawn on it.

A frame that was not answered itself shows the boxes of the answered frame nearest in time, so
frames are held back until the next answer has come. Knows no service.
"""

from __future__ import annotations

from collections import deque
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av

from agent.drawing import LabelledBox, draw_boxes
from agent.errors import SourceError
from agent.frame import RGBArray
from client.types import FrameResult, OutgoingFrame

_MAX_HELD = 150
"""Frames held back at most; beyond, the oldest is written with the last answer there was."""


class AnnotatedVideo:
    """Writes H.264; use it as a context manager, or call `close`."""

    def __init__(self, path: Path, *, fps: float) -> None:
        self._path = path
        self._rate = Fraction(fps).limit_denominator(1000)
        self._held: deque[tuple[int, RGBArray]] = deque()
        self._last: FrameResult | None = None
        self._stream: av.VideoStream | None = None
        try:
            # FFmpeg opens the file with the first frame; a bad place is to be told now.
            path.open("wb").close()
            self._container = av.open(str(path), "w")
        except OSError as error:
            raise SourceError(f"cannot write {path}: {error.strerror}") from error

    def __enter__(self) -> AnnotatedVideo:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def add_frame(self, frame: OutgoingFrame, rgb: RGBArray) -> None:
        """A frame that is being sent, and its pixels."""
        self._held.append((frame.sequence, rgb))
        if len(self._held) > _MAX_HELD:
            self._write(self._held.popleft()[1], self._last)

    def add_result(self, result: FrameResult) -> None:
        """An answer; they come in the order of their frames."""
        while self._held and self._held[0][0] <= result.sequence:
            sequence, rgb = self._held.popleft()
            self._write(rgb, self._nearest(sequence, result))
        self._last = result

    def close(self) -> None:
        """Write what is left and finish the file."""
        while self._held:
            self._write(self._held.popleft()[1], self._last)
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()

    def _nearest(self, sequence: int, coming: FrameResult) -> FrameResult:
        last = self._last
        if last is None or coming.sequence - sequence <= sequence - last.sequence:
            return coming
        return last

    def _write(self, rgb: RGBArray, result: FrameResult | None) -> None:
        drawn = rgb if result is None else draw_result(rgb, result)
        # H.264 wants even sides.
        height, width = drawn.shape[0] // 2 * 2, drawn.shape[1] // 2 * 2
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate)
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = "yuv420p"
        picture = av.VideoFrame.from_ndarray(drawn[:height, :width].copy(), format="rgb24")
        self._container.mux(self._stream.encode(picture))


def draw_result(rgb: RGBArray, result: FrameResult, *, caption: str = "") -> RGBArray:
    """The picture with all boxes of a result."""
    boxes = [
        LabelledBox(detection.box, detection.label, detection.confidence)
        for answer in result.results
        for detection in answer.detections
    ]
    return draw_boxes(rgb, boxes, caption=caption)
