"""A video source as a stream of outgoing frames, at the rate it was captured. Knows no service."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator

from groundstream.types import OutgoingFrame
from groundstream.video.newest_picture import NewestPicture
from groundstream.video.pictures import encode_jpeg
from groundstream.video.sources import SourceFrame, VideoSource

JPEG_QUALITY = 90


async def play(
    source: VideoSource, *, on_frame: Callable[[OutgoingFrame, SourceFrame], None] | None = None
) -> AsyncIterator[OutgoingFrame]:
    """Every picture of the source, when its time has come.

    Args:
        source: read and compressed in a thread, so that the event loop stays free.
        on_frame: told each frame and its picture just before it is sent.

    Raises:
        SourceError: the source cannot be read on.
    """
    pictures = iter(NewestPicture(source) if source.is_live else source)
    started_s = time.monotonic()
    for sequence in itertools.count():
        prepared = await asyncio.to_thread(_next_jpeg, pictures)
        if prepared is None:
            return
        picture, encoded = prepared
        if not source.is_live:
            await asyncio.sleep(started_s + picture.pts_s - time.monotonic())
        frame = OutgoingFrame(encoded, sequence, capture_time_ns=time.time_ns())
        if on_frame is not None:
            on_frame(frame, picture)
        yield frame


def _next_jpeg(pictures: Iterator[SourceFrame]) -> tuple[SourceFrame, bytes] | None:
    picture = next(pictures, None)
    if picture is None:
        return None
    return picture, encode_jpeg(picture.rgb, JPEG_QUALITY)
