"""Packets of H.264 and H.265 taken from what FFmpeg reads, fit to be sent on undecoded.

Only what is upright as it is: a video that must be turned is decoded by its reader. Knows no
service.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, replace

import av
from av.bitstream import BitStreamFilterContext
from av.error import FFmpegError

from groundstream.enums import VideoCodec
from groundstream.types import VideoFormat

_CODECS = {"h264": VideoCodec.H264, "hevc": VideoCodec.H265}
_TO_ANNEX_B = {VideoCodec.H264: "h264_mp4toannexb", VideoCodec.H265: "hevc_mp4toannexb"}
_START_CODES = (b"\0\0\1", b"\0\0\0\1")
_MAX_HELD = 32
"""Packets that wait to be numbered; no codec moves a picture past so many others."""
_BACK_S = 0.5
"""A time that is so much less than those before is another clock's, as in `SteadyClock`."""
_runs = itertools.count(1)


@dataclass(frozen=True)
class Coded:
    """One packet as it came."""

    data: bytes
    """Annex B."""
    is_key: bool
    format: VideoFormat
    size: tuple[int, int]
    """(width, height)"""
    run: int
    """Which opening of the source it belongs to."""
    time_s: float | None
    """When its picture is shown, by the source's own time, where it has one."""
    late_s: float = 0.0
    """How much earlier its picture is shown than the last of those before it."""
    lead_s: float = 0.0
    """How long before its picture is shown it is to be decoded."""
    rank: int = 0
    """Of its picture in the order in which they are shown."""


@dataclass(frozen=True)
class SourcePacket:
    """One packet of a source; its picture is a frame as any other."""

    coded: Coded
    due_s: float
    """When the last of the pictures up to here is shown, seconds since the first."""

    @property
    def pts_s(self) -> float:
        """Time of its picture since the first, seconds."""
        return self.due_s - self.coded.late_s


class PacketReader:
    """Makes one stream's packets fit to be sent."""

    def __init__(self, stream: av.VideoStream, codec: VideoCodec) -> None:
        """Begin with the next key frame."""
        context = stream.codec_context
        parameters = bytes(context.extradata or b"")
        is_annex_b = not parameters or parameters.startswith(_START_CODES)
        # What is not in Annex B form yet gets its parameter sets before every key frame.
        self._filter = None if is_annex_b else BitStreamFilterContext(_TO_ANNEX_B[codec], stream)
        self._format = VideoFormat(codec, parameters if is_annex_b else b"")
        self._size = (context.width, context.height)
        self._run = next(_runs)
        self._in_order = not context.has_b_frames
        self._held: deque[tuple[int, Coded]] = deque()
        self._unranked: list[int] = []
        self._ranks: dict[int, int] = {}
        self._num_ranked = 0
        self._last_dts: int | None = None
        self._first_pts: int | None = None
        self._latest_s: float | None = None
        self.num_useless = 0
        """Packets that build on some from before the first key frame."""

    @classmethod
    def begin(
        cls, stream: av.VideoStream, packet: av.Packet, codecs: Collection[VideoCodec]
    ) -> PacketReader | None:
        """A reader that `packet`, a key frame, is the first to be given to; None: decode instead.

        Decodes this one packet, for only its picture tells whether it lies on its side.
        """
        codec = _CODECS.get(stream.codec_context.name)
        if codec is None or codec not in codecs:
            return None
        reader = cls(stream, codec)
        pictures = []
        with contextlib.suppress(FFmpegError, ValueError):
            pictures = [*packet.decode(), *stream.codec_context.decode(None)]
        stream.codec_context.flush_buffers()
        is_upright = bool(pictures) and not pictures[0].side_data.get("DISPLAYMATRIX")
        return reader if is_upright else None

    def read(self, packet: av.Packet | None) -> list[Coded]:
        """The packets that can be sent now that this one came; None: none follows.

        Raises:
            FFmpegError: it cannot be brought into Annex B form.
        """
        if packet is None or not packet.size:
            return self._numbered_all()
        ready = []
        for one in [packet] if self._filter is None else self._filter.filter(packet):
            ready += self._number(one)
        return ready

    def _number(self, packet: av.Packet) -> list[Coded]:
        pts = packet.dts if packet.pts is None else packet.pts
        if self._first_pts is None:
            self._first_pts = pts
        elif self._num_ranked == 0 and pts is not None and pts < (self._first_pts or 0):
            self.num_useless += 1
            return []
        coded = self._coded(packet, pts)
        if self._in_order or pts is None:
            self._num_ranked += 1
            return [replace(coded, rank=self._num_ranked - 1)]
        ready = []
        dts = packet.dts
        if dts is not None:
            if self._last_dts is not None and dts < self._last_dts:
                # Another clock; its times say nothing about those before.
                ready += self._numbered_all()
            self._last_dts = dts
            # No packet from here on is shown before the time at which this one is decoded.
            while self._unranked and self._unranked[0] < dts:
                self._rank_next()
        if len(self._unranked) > _MAX_HELD:
            self._rank_next()
        self._held.append((pts, coded))
        heapq.heappush(self._unranked, pts)
        return ready + self._take_ranked()

    def _coded(self, packet: av.Packet, pts: int | None) -> Coded:
        time_s, late_s, lead_s = None, 0.0, 0.0
        if pts is not None:
            time_s = float(pts * packet.time_base)
            if self._latest_s is None or not 0.0 < self._latest_s - time_s < _BACK_S:
                self._latest_s = time_s
            late_s = self._latest_s - time_s
            if packet.dts is not None:
                lead_s = min(max(0.0, float((pts - packet.dts) * packet.time_base)), _BACK_S)
        return Coded(
            bytes(packet),
            packet.is_keyframe,
            self._format,
            self._size,
            self._run,
            time_s,
            late_s,
            lead_s,
        )

    def _rank_next(self) -> None:
        self._ranks[heapq.heappop(self._unranked)] = self._num_ranked
        self._num_ranked += 1

    def _take_ranked(self) -> list[Coded]:
        taken = []
        while self._held and self._held[0][0] in self._ranks:
            pts, coded = self._held.popleft()
            taken.append(replace(coded, rank=self._ranks.pop(pts)))
        return taken

    def _numbered_all(self) -> list[Coded]:
        while self._unranked:
            self._rank_next()
        return self._take_ranked()
