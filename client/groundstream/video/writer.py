"""An H.264 file, frame by frame. Knows nothing of boxes or of where the frames come from."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np
from PIL import Image

from groundstream.errors import SourceError
from groundstream.video.pictures import RGBArray

VIDEO_SUFFIXES = {".mp4", ".m4v", ".mov", ".mkv", ".avi"}
_CONTAINERS = {".m4v": "mp4"}
"""Where FFmpeg would take the suffix for something else."""
_TICKS_PER_S = 90_000
_LEAST_SIDE_PX = 16


class VideoWriter:
    """Writes RGB frames; use it as a context manager, or call `close`."""

    def __init__(
        self,
        path: Path,
        *,
        fps: float,
        bits_per_s: int | None = None,
        size: tuple[int, int] | None = None,
        preset: str | None = None,
        num_threads: int = 0,
    ) -> None:
        """Begin a file.

        Args:
            path: what to write; its suffix says how.
            fps: pictures per second; of frames that are written without a time.
            bits_per_s: None: what looks well.
            size: (width, height) of the video; None: of its first frame. Frames of another size
                are fitted into it, their proportions kept.
            preset: x264's name for how much time to spend on a small file; None: the usual.
            num_threads: that compress; 0: as many as there are processors.

        Raises:
            SourceError: the place cannot be written, or is named like no video.
        """
        if path.suffix.lower() not in VIDEO_SUFFIXES:
            known = ", ".join(sorted(VIDEO_SUFFIXES))
            raise SourceError(f"cannot write {path}: a video is one of {known}")
        self._path = path
        self._rate = Fraction(fps).limit_denominator(1001)
        self._bits_per_s = bits_per_s
        self._size = size
        self._options = {} if preset is None else {"preset": preset}
        self._num_threads = num_threads
        self._stream: av.VideoStream | None = None
        self._last_tick = -1
        try:
            # FFmpeg opens the file with the first frame; a bad place is to be told now.
            path.open("wb").close()
            container = _CONTAINERS.get(path.suffix.lower())
            self._container = av.open(str(path), "w", format=container)
        except OSError as error:
            raise SourceError(f"cannot write {path}: {error.strerror}") from error

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def write(self, rgb: RGBArray, pts_s: float | None = None) -> None:
        """Append (height, width, 3) uint8 pixels; odd sides lose a line, as H.264 wants.

        Args:
            rgb: the picture.
            pts_s: when it is shown, seconds; None: one frame's time after the one before.
        """
        if self._stream is None:
            width, height = self._size or (rgb.shape[1], rgb.shape[0])
            self._stream = self._container.add_stream(
                "libx264", rate=self._rate, options=self._options
            )
            self._stream.codec_context.thread_count = self._num_threads
            self._stream.width = max(width, _LEAST_SIDE_PX) // 2 * 2
            self._stream.height = max(height, _LEAST_SIDE_PX) // 2 * 2
            self._stream.pix_fmt = "yuv420p"
            self._stream.codec_context.time_base = Fraction(1, _TICKS_PER_S)
            if self._bits_per_s is not None:
                self._stream.bit_rate = self._bits_per_s
        fitted = _fitted(rgb, self._stream.width, self._stream.height)
        picture = av.VideoFrame.from_ndarray(fitted, format="rgb24")
        picture.pts = self._tick(pts_s)
        picture.time_base = Fraction(1, _TICKS_PER_S)
        self._container.mux(self._stream.encode(picture))

    def _tick(self, pts_s: float | None) -> int:
        """The frame's time; never before the one before, whatever the source says."""
        if pts_s is None:
            step = round(_TICKS_PER_S / self._rate)
            wanted = self._last_tick + step if self._last_tick >= 0 else 0
        else:
            wanted = round(pts_s * _TICKS_PER_S)
        self._last_tick = max(wanted, self._last_tick + 1)
        return self._last_tick

    def close(self) -> None:
        """Finish the file; of a video without frames there is none."""
        if self._stream is None:
            self._path.unlink(missing_ok=True)
            return
        self._container.mux(self._stream.encode(None))
        self._container.close()


def _fitted(rgb: RGBArray, width: int, height: int) -> RGBArray:
    """The picture at this size: cut by an odd line, or, shrunk where it must be, in the middle."""
    if rgb.shape[0] in (height, height + 1) and rgb.shape[1] in (width, width + 1):
        return rgb[:height, :width].copy()
    scale = min(width / rgb.shape[1], height / rgb.shape[0], 1.0)
    inner = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
    scaled = np.asarray(Image.fromarray(rgb).resize(inner))
    canvas[top : top + inner[1], left : left + inner[0]] = scaled
    return canvas
