"""A video source as a stream of outgoing frames, at the rate it was captured. Knows no service."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator

from groundstream.pulled import Pulled
from groundstream.types import OutgoingFrame
from groundstream.video.live import LiveSource
from groundstream.video.pictures import encode_jpeg
from groundstream.video.sources import SourceFrame, VideoSource

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


def _encoded(source: VideoSource) -> Iterator[tuple[SourceFrame, bytes]]:
    for picture in source:
        yield picture, encode_jpeg(picture.rgb, JPEG_QUALITY)
