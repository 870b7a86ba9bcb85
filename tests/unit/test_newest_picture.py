"""Sources that do not wait."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from groundstream.errors import SourceError
from groundstream.video.newest_picture import NewestPicture
from groundstream.video.sources import SourceFrame

PIXELS = np.zeros((2, 2, 3), dtype=np.uint8)


class Camera:
    """Gives a picture every few milliseconds, read or not, then breaks or ends."""

    fps = 200.0
    is_live = True

    def __init__(self, count: int, *, breaks: bool = False) -> None:
        self._count = count
        self._breaks = breaks

    def __iter__(self) -> Iterator[SourceFrame]:
        for number in range(self._count):
            time.sleep(0.005)
            yield SourceFrame(PIXELS, float(number))
        if self._breaks:
            raise SourceError("unplugged")


def test_a_busy_reader_gets_the_newest_and_the_rest_is_counted() -> None:
    live = NewestPicture(Camera(60))
    times = []
    for picture in live:
        times.append(picture.pts_s)
        time.sleep(0.05)
    assert times == sorted(times)
    assert len(times) < 40
    assert times[-1] == 59.0
    assert len(times) + live.num_skipped == 60


def test_what_breaks_the_source_reaches_the_reader() -> None:
    with pytest.raises(SourceError, match="unplugged"):
        list(NewestPicture(Camera(1, breaks=True)))
