"""A Rerun recording of a stream: pictures, boxes, ids and the age of what they rest on.

The only user of `rerun-sdk`, an extra (`pip install groundstream-client[rerun]`). Knows no service.
"""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from groundstream.errors import SettingsError
from groundstream.types import FrameResult, OutgoingFrame
from groundstream.video.drawing import label_colour
from groundstream.video.pictures import RGBArray

_APPLICATION = "groundstream"


class RerunRecording:
    """Writes an .rrd file; use it as a context manager."""

    def __init__(self, path: Path) -> None:
        """Open a recording.

        Args:
            path: file to write.

        Raises:
            SettingsError: `rerun-sdk` is not installed.
        """
        try:
            import rerun
        except ImportError:
            raise SettingsError(
                "a Rerun recording needs rerun-sdk; pip install 'groundstream-client[rerun]'"
            ) from None
        self._rerun = rerun
        self._stream = rerun.RecordingStream(_APPLICATION)
        self._stream.save(str(path))

    def __enter__(self) -> RerunRecording:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._stream.flush()

    def add_frame(self, frame: OutgoingFrame, _rgb: RGBArray, _pts_s: float | None = None) -> None:
        """A frame that is being sent."""
        self._at(frame.sequence, frame.capture_time_ns)
        picture = self._rerun.EncodedImage(contents=frame.encoded, media_type="image/jpeg")
        self._stream.log("camera", picture)

    def add_result(self, result: FrameResult) -> None:
        """An answer, at the time of its frame."""
        self._at(result.sequence, result.capture_time_ns)
        found = [d for answer in result.results for d in answer.detections]
        labels = [d.label if d.track_id is None else f"{d.label} #{d.track_id}" for d in found]
        boxes = self._rerun.Boxes2D(
            array=[d.box for d in found],
            array_format=self._rerun.Box2DFormat.XYXY,
            labels=labels,
            colors=[label_colour(d.label) for d in found],
        )
        self._stream.log("camera/boxes", boxes)
        for answer in result.results:
            age = self._rerun.Scalars(answer.evidence_age_ms)
            self._stream.log(f"evidence_age_ms/{answer.query_id.replace(' ', '_')}", age)

    def _at(self, sequence: int, capture_time_ns: int) -> None:
        self._stream.set_time("frame", sequence=sequence)
        self._stream.set_time("capture", timestamp=capture_time_ns / 1e9)
