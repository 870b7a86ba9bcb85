"""Books and pace of one camera."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from groundstream.cameras.camera_books import StreamBooks
from groundstream.cameras.pacing import PacedSource
from groundstream.errors import SourceError
from groundstream.events import Gap, StreamOpened, StreamStats
from groundstream.types import FrameResult, StageTimings, StreamPolicy
from groundstream.video.sources import SourceFrame, open_source
from tests.clips import write_clip

PICTURE = np.zeros((2, 2, 3), np.uint8)


class Film:
    """So many pictures of a source with an end."""

    def __init__(self, count: int, fps: float = 30.0) -> None:
        self.fps, self.is_live, self._count = fps, False, count

    def __iter__(self) -> Iterator[SourceFrame]:
        for number in range(self._count):
            yield SourceFrame(PICTURE, number / self.fps)


def times(source: PacedSource, most: int = 10_000) -> list[float]:
    found = []
    for picture in source:
        found.append(round(picture.pts_s, 4))
        if len(found) == most:
            break
    return found


def test_a_file_is_thinned_to_the_wanted_rate() -> None:
    source = PacedSource(Film(300), fps=10.0, repeat=False)
    found = times(source)
    assert found == pytest.approx([number / 10 for number in range(100)])
    assert source.num_left_out == 200


def test_a_rate_that_does_not_divide_holds_on_average() -> None:
    assert len(times(PacedSource(Film(300), fps=12.0, repeat=False))) == pytest.approx(120, abs=2)
    assert len(times(PacedSource(Film(300), fps=60.0, repeat=False))) == 300


def test_a_file_begins_again_and_its_times_go_on() -> None:
    found = times(PacedSource(Film(30), fps=None, repeat=True), 100)
    assert found == pytest.approx([number / 30 for number in range(100)], abs=1e-3)


def test_a_file_without_pictures_does_not_begin_again_for_ever() -> None:
    with pytest.raises(SourceError, match="no picture"):
        times(PacedSource(Film(0), fps=None, repeat=True))


def test_a_source_is_stopped_from_another_thread() -> None:
    source = PacedSource(Film(30), fps=None, repeat=True)
    threading.Timer(0.1, source.stop).start()
    began_s = time.monotonic()
    times(source, 10**9)
    assert time.monotonic() - began_s < 10.0


def test_reading_leaves_no_threads_behind(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4")
    gc.disable()  # It may be long before it comes by.
    try:
        before = len(os.listdir("/proc/self/task"))
        for _ in range(2):
            assert len(list(open_source(str(path)))) == 60
        assert len(os.listdir("/proc/self/task")) <= before + 8
    finally:
        gc.enable()


# ---- books ----


def result(number: int) -> FrameResult:
    return FrameResult(number, 1, 1, 1, 1, 4, 4, (), False, 0, StageTimings())


def opened(*, resumed: bool, gap: int = 0) -> StreamOpened:
    missing = Gap(gap, 0, gap) if gap else None
    return StreamOpened("secret", resumed, 1, (), StreamPolicy(), missing)


def stats(**counts: Any) -> StreamStats:
    return StreamStats(**counts)


def told(books: StreamBooks, *events: Any, sent: int, unsent: int = 0) -> list[int]:
    books.books.pictures = sent + unsent
    return [books.note(event, sent, unsent) for event in events]


def test_books_of_a_stream_that_ends_well_close() -> None:
    books = StreamBooks()
    told(books, opened(resumed=False), sent=0)
    told(books, *(result(number) for number in range(6)), sent=10)
    told(books, stats(received=10, answered=6, superseded=3, rejected=1, ended=True), sent=10)
    assert books.close(10) == 0
    assert books.books.are_closed
    assert (books.books.answered, books.books.superseded, books.books.failed) == (6, 3, 1)


def test_books_close_over_a_session_that_is_forgotten_and_one_that_is_resumed() -> None:
    books = StreamBooks()
    told(books, opened(resumed=False), sent=0)
    told(books, *(result(number) for number in range(5)), sent=10)
    told(books, stats(received=8, answered=5, superseded=2, in_flight=1), sent=10)
    # Forgotten: of 10 sent 5 were answered, so the service calls 5 failed; 2 of them we knew.
    assert told(books, opened(resumed=False, gap=5), sent=10) == [3]
    told(books, *(result(number) for number in range(10, 14)), sent=16)
    told(books, stats(received=16, answered=9, superseded=1, failed=5, in_flight=1), sent=16)
    assert books.books.superseded == 3
    assert books.books.in_flight == 1
    # Resumed: the one that was in flight went down with the connection.
    assert told(books, opened(resumed=True, gap=1), sent=16) == [1]
    told(books, result(17), sent=18)
    told(books, stats(received=18, answered=10, superseded=1, failed=7, ended=True), sent=18)
    assert books.close(18) == 0
    assert books.books.are_closed
    assert (books.books.answered, books.books.failed, books.books.lost) == (10, 1, 4)


def test_what_nobody_accounts_for_is_lost() -> None:
    books = StreamBooks()
    told(books, opened(resumed=False), sent=0)
    told(books, result(0), sent=3, unsent=4)
    assert books.close(3) == 2
    assert books.books.are_closed
    assert (books.books.lost, books.books.unsent) == (2, 4)
