"""One connection to something FFmpeg reads: opened, decoded, turned upright, closed.

No error that leaves here holds a password, neither in its words nor as its cause.
"""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from types import TracebackType

import av
import numpy as np
from av.error import FFmpegError
from av.sidedata.sidedata import SideDataContainer
from av.video.reformatter import VideoReformatter

from groundstream.enums import VideoCodec
from groundstream.errors import SourceError, reason_of
from groundstream.locations import shown_location
from groundstream.video.coded import Coded, PacketReader
from groundstream.video.pictures import RGBArray

DEFAULT_FPS = 25.0
_UNREADABLE = (FFmpegError, OSError, ValueError)
_MATRIX = struct.Struct("<9i")
_MAX_DAMAGED = 300
"""Packets in a row that cannot be decoded; then it is no video."""
# Over TCP no picture is torn.
_RTSP_OPTIONS = {"rtsp_transport": "tcp"}
_LIVE_THREADS, _FILE_THREADS = 2, 4
"""Of each decoder; a wall has many."""


@dataclass(frozen=True)
class Decoded:
    """One picture as the decoder gives it; cheap to keep and to drop."""

    frame: av.VideoFrame
    time_s: float | None
    """The source's own time, where it has one."""
    reformatter: VideoReformatter = field(default_factory=VideoReformatter, repr=False)
    """Of its connection. One that each frame makes for itself has threads of its own, which stay
    until the garbage collector comes by: thousands, within a minute of many cameras."""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) as it is seen."""
        width, height = self.frame.width, self.frame.height
        return (height, width) if _lies_down(_matrix(self.frame)) else (width, height)

    def rgb(self) -> RGBArray:
        """Its pixels, upright."""
        colours = self.reformatter.reformat(self.frame, format="rgb24")
        pixels = np.asarray(colours.to_ndarray(), dtype=np.uint8)
        matrix = _matrix(self.frame)
        return pixels if matrix is None else _upright(pixels, matrix)


class Connection:
    """An open file, device or address; use it as a context manager, or call `close`."""

    def __init__(
        self,
        location: str,
        *,
        container: str | None = None,
        silence_s: float | None = None,
        tolerant: bool = False,
    ) -> None:
        """Open it.

        Args:
            location: what FFmpeg is to read.
            container: FFmpeg's name of the format, where the location does not tell.
            silence_s: how long it may say nothing before it counts as lost; None: for ever.
            tolerant: as with a camera, leave out what cannot be decoded, and keep no picture back
                for the sake of speed.

        Raises:
            SourceError: it cannot be opened, or holds no video.
        """
        self.num_damaged = 0
        """Packets that could not be decoded."""
        self.passes_on: Collection[VideoCodec] = ()
        """Packets of these codecs are given as they are, where their pictures are upright."""
        self._location = location
        self._silence_s = silence_s
        self._tolerant = tolerant
        self._reformatter = VideoReformatter()
        options = _RTSP_OPTIONS if location.startswith(("rtsp://", "rtsps://")) else {}
        timeout = None if silence_s is None else (silence_s, silence_s)
        try:
            self._opened = av.open(location, format=container, options=options, timeout=timeout)
        except _UNREADABLE as error:
            raise SourceError(f"cannot open {self._shown()}: {self._words(error)}") from None
        if not self._opened.streams.video:
            self._opened.close()
            raise SourceError(f"{self._shown()} has no video stream")
        self._stream = self._opened.streams.video[0]
        # A thread for each picture keeps back as many pictures as there are threads: a file can
        # wait for them, and a camera cannot.
        self._stream.thread_type = "SLICE" if tolerant else "AUTO"
        self._stream.codec_context.thread_count = _LIVE_THREADS if tolerant else _FILE_THREADS
        rate = self._stream.average_rate
        self.fps = float(rate) if rate else DEFAULT_FPS
        """Nominal pictures per second."""

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of it; not while another thread reads."""
        with contextlib.suppress(*_UNREADABLE):
            self._opened.close()

    @property
    def ends(self) -> bool:
        """Whether it has a last picture, as a file has."""
        return bool(self._opened.duration and self._opened.duration > 0)

    @property
    def comes_in_pieces(self) -> bool:
        """Whether seconds of pictures come at once and are to be shown one by one (HLS, DASH)."""
        return any(name in self._opened.format.name for name in ("hls", "dash"))

    def pictures(self) -> Iterator[Decoded | Coded]:
        """Its pictures in the order in which they are shown; packets in that of decoding.

        Raises:
            SourceError: it cannot be read on.
        """
        seen_s = time.monotonic()
        num_damaged = 0
        reader: PacketReader | None = None
        passes_on = bool(self.passes_on)
        try:
            asked_s = seen_s
            for packet in self._opened.demux():
                now_s = time.monotonic()
                if self._silence_s is not None and now_s - asked_s >= self._silence_s:
                    # Instead of saying so, FFmpeg gives what it has kept back, once.
                    raise SourceError(f"{self._shown()} says nothing for {self._silence_s:g} s")
                if packet.stream.index == self._stream.index:
                    if passes_on and reader is None and packet.size:
                        if not packet.is_keyframe:
                            self.num_damaged += 1
                            continue
                        reader = PacketReader.begin(self._stream, packet, self.passes_on)
                        passes_on = reader is not None
                    try:
                        pictures = self._pictures_of(packet, reader)
                    except av.error.InvalidDataError:
                        num_damaged += 1
                        self.num_damaged += 1
                        if not self._tolerant or num_damaged > _MAX_DAMAGED:
                            raise
                        pictures = []
                    for picture in pictures:
                        num_damaged = 0
                        yield picture
                        now_s = seen_s = time.monotonic()
                if self._silence_s is not None and now_s - seen_s > self._silence_s:
                    raise SourceError(f"{self._shown()} sends, but no picture")
                asked_s = time.monotonic()
        except _UNREADABLE as error:
            raise SourceError(f"reading {self._shown()} failed: {self._words(error)}") from None

    def _pictures_of(
        self, packet: av.Packet, reader: PacketReader | None
    ) -> list[Decoded] | list[Coded]:
        if reader is None:
            # Some cameras and broken files carry no times.
            return [Decoded(frame, frame.time, self._reformatter) for frame in packet.decode()]
        useless_before = reader.num_useless
        coded = reader.read(packet)
        self.num_damaged += reader.num_useless - useless_before
        return coded

    def _shown(self) -> str:
        return "standard input" if self._location == "pipe:0" else shown_location(self._location)

    def _words(self, error: Exception) -> str:
        if isinstance(error, av.error.ExitError):
            return f"it says nothing for {self._silence_s:g} s"
        return shown_location(reason_of(error).replace(self._location, self._shown()))


def _matrix(frame: av.VideoFrame) -> tuple[int, int, int, int] | None:
    """Signs of the display matrix, (a, b, c, d); None: the picture is upright."""
    # `frame.side_data` would be kept by the frame and refer to it: all pixels of every picture
    # would wait for the garbage collector, to which they are two small objects.
    side_data = SideDataContainer(frame)  # type: ignore[call-arg]  # PyAV's stubs lack it.
    data = side_data.get("DISPLAYMATRIX")
    if data is None:
        return None
    try:
        a, b, _, c, d, *_ = _MATRIX.unpack(bytes(data))
    except struct.error:
        return None
    # Only quarter turns and mirrors leave a grid of pixels a grid; others go to the nearest.
    stands = abs(a) >= abs(b)
    found = (_sign(a), 0, 0, _sign(d)) if stands else (0, _sign(b), _sign(c), 0)
    return None if found in ((1, 0, 0, 1), (0, 0, 0, 0)) else found


def _sign(value: int) -> int:
    return (value > 0) - (value < 0)


def _lies_down(matrix: tuple[int, int, int, int] | None) -> bool:
    return matrix is not None and matrix[0] == 0


def _upright(pixels: RGBArray, matrix: tuple[int, int, int, int]) -> RGBArray:
    """What stood at (x, y) is shown at (a x + c y, b x + d y), moved into the picture."""
    a, b, c, d = matrix
    if a == 0:
        pixels = pixels.transpose(1, 0, 2)
        a, d = c, b
    return np.ascontiguousarray(pixels[:: d or 1, :: a or 1])
