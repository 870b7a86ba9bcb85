"""A video source as a stream of outgoing frames, at the rate it was captured. Knows no service."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator

from groundstream.pulled import Pulled
from groundstream.types import OutgoingFrame, OutgoingPacket, VideoCodec
from groundstream.video.live import LiveSource
from groundstream.video.pictures import encode_jpeg
from groundstream.video.sources import SourceFrame, SourcePacket, VideoFile, VideoSource

JPEG_QUALITY = 90


async def play(
    source: VideoSource,
    *,
    on_frame: Callable[[OutgoingFrame, SourceFrame], None] | None = None,
    keep_capture_times: bool = False,
) -> AsyncIterator[OutgoingFrame]:
    """Every picture of the source, when its time has come.

    Args:
        source: read and compressed in a thread, so that the event loop stays free.
        on_frame: told each frame and its picture just before it is sent.
        keep_capture_times: send the times at which a recording's pictures were taken, not those at
            which they are played.

    Raises:
        SourceError: the source cannot be read on.
    """
    pictures = Pulled(_encoded(source))
    started_s: float | None = None
    try:
        for sequence in itertools.count():
            try:
                picture, encoded = await anext(pictures)
            except StopAsyncIteration:
                return
            if not source.is_live:
                started_s = time.monotonic() - picture.pts_s if started_s is None else started_s
                await asyncio.sleep(started_s + picture.pts_s - time.monotonic())
            taken_ns = picture.capture_time_ns if keep_capture_times else None
            time_ns = time.time_ns() if taken_ns is None else taken_ns
            frame = OutgoingFrame(encoded, sequence, capture_time_ns=time_ns)
            if on_frame is not None:
                on_frame(frame, picture)
            yield frame
    finally:
        if isinstance(source, LiveSource):
            source.stop()
        await pictures.aclose()


async def play_packets(
    source: VideoSource, codecs: Collection[VideoCodec]
) -> AsyncIterator[OutgoingFrame | OutgoingPacket]:
    """A source undecoded where it holds one of these codecs, else every picture of it.

    Args:
        source: files, cameras and streams can pass on their packets, but for videos that must be
            turned; everything else is decoded and compressed here.
        codecs: what the service takes; see `Capabilities.video_codecs`.

    Raises:
        SourceError: the source cannot be read on.
    """
    if not codecs or not isinstance(source, (VideoFile, LiveSource)):
        async for frame in play(source):
            yield frame
        return
    items = Pulled(_encoded_or_coded(source.packets(codecs)))
    numbers = _Numbers()
    started_s: float | None = None
    try:
        async for item, encoded in items:
            # A file's packets go when they are to be decoded, so that no picture comes late.
            lead_s = item.coded.lead_s if isinstance(item, SourcePacket) else 0.0
            now_s = time.monotonic()
            started_s = now_s - item.pts_s + lead_s if started_s is None else started_s
            if not source.is_live:
                await asyncio.sleep(started_s + item.pts_s - lead_s - now_s)
            if isinstance(item, SourceFrame):
                yield OutgoingFrame(encoded, numbers.next(), capture_time_ns=time.time_ns())
                continue
            sequence = numbers.of_packet(item)
            if sequence is None:
                continue
            coded = item.coded
            # A camera took it when it took the newest picture so far, or before.
            ahead_s = -coded.late_s if source.is_live else coded.lead_s
            yield OutgoingPacket(
                coded.data,
                coded.format,
                sequence,
                capture_time_ns=time.time_ns() + round(1e9 * ahead_s),
                is_key=coded.is_key,
            )
    finally:
        if isinstance(source, LiveSource):
            source.stop()
        await items.aclose()


class _Numbers:
    """Sequence numbers of a stream, which go on when its source is opened again."""

    def __init__(self) -> None:
        self._next = 0
        self._run = 0
        self._first = self._least = 0

    def next(self) -> int:
        """That of a picture which comes in the order of showing."""
        self._next += 1
        return self._next - 1

    def of_packet(self, packet: SourcePacket) -> int | None:
        """That of a packet; None: it builds on what was before its source was opened."""
        coded = packet.coded
        if coded.run != self._run:
            if not coded.is_key:
                return None
            self._run, self._first = coded.run, self._next - coded.rank
            self._least = self._next
        sequence = self._first + coded.rank
        if sequence < self._least:
            return None
        self._next = max(self._next, sequence + 1)
        return sequence


def _encoded(source: VideoSource) -> Iterator[tuple[SourceFrame, bytes]]:
    for picture in source:
        yield picture, encode_jpeg(picture.rgb, JPEG_QUALITY)


def _encoded_or_coded(
    items: Iterator[SourceFrame | SourcePacket],
) -> Iterator[tuple[SourceFrame | SourcePacket, bytes]]:
    for item in items:
        if isinstance(item, SourceFrame):
            yield item, encode_jpeg(item.rgb, JPEG_QUALITY)
        else:
            yield item, b""
