"""An H.264 file, frame by frame. Knows nothing of boxes or of where the frames come from."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av

from agent.errors import SourceError
from agent.frame import RGBArray


class VideoWriter:
    """Writes RGB frames of one size; use it as a context manager, or call `close`."""

    def __init__(self, path: Path, *, fps: float, bits_per_s: int | None = None) -> None:
        self._rate = Fraction(fps).limit_denominator(1001)
        self._bits_per_s = bits_per_s
        self._stream: av.VideoStream | None = None
        try:
            # FFmpeg opens the file with the first frame; a bad place is to be told now.
            path.open("wb").close()
            self._container = av.open(str(path), "w")
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

    def write(self, rgb: RGBArray) -> None:
        """Append (height, width, 3) uint8 pixels; odd sides lose a line, as H.264 wants."""
        height, width = rgb.shape[0] // 2 * 2, rgb.shape[1] // 2 * 2
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate)
            self._stream.width, self._stream.height = width, height
            self._stream.pix_fmt = "yuv420p"
            if self._bits_per_s is not None:
                self._stream.bit_rate = self._bits_per_s
        picture = av.VideoFrame.from_ndarray(rgb[:height, :width].copy(), format="rgb24")
        self._container.mux(self._stream.encode(picture))

    def close(self) -> None:
        """Finish the file."""
        if self._stream is not None:
            self._container.mux(self._stream.encode(None))
        self._container.close()
