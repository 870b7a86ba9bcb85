"""The state machine of sources that do not wait, over connections that do what a test says."""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import pytest

from groundstream.errors import SourceError
from groundstream.events import (
    SourceClockJumped,
    SourceEnded,
    SourceEvent,
    SourceLost,
    SourceOpened,
    SourceResized,
)
from groundstream.video.clock import SteadyClock
from groundstream.video.live import LiveSource, Reopen
from groundstream.video.pictures import RGBArray
from tests.waiting import until

QUICK = Reopen(first_pause_s=0.01, max_pause_s=0.05, silence_s=20.0)


@dataclass
class Shown:
    """A picture that costs nothing."""

    time_s: float | None
    size: tuple[int, int] = (4, 2)

    def rgb(self) -> RGBArray:
        return np.zeros((self.size[1], self.size[0], 3), dtype=np.uint8)


@dataclass
class Script:
    """A connection: what it gives, how fast, and how it ends."""

    pictures_given: list[Shown]
    every_s: float = 0.01
    breaks: str = ""
    refuses: str = ""
    hangs: threading.Event | None = None
    ends: bool = False
    comes_in_pieces: bool = False
    fps: float = 100.0
    num_damaged: int = 0
    closed: int = 0

    def __enter__(self) -> Script:
        if self.hangs is not None:
            self.hangs.wait(10.0)
        if self.refuses:
            raise SourceError(self.refuses)
        return self

    def __exit__(self, *_error: object) -> None:
        self.closed += 1

    def pictures(self) -> Iterator[Shown]:
        for picture in self.pictures_given:
            time.sleep(self.every_s)
            yield picture
        if self.breaks:
            raise SourceError(self.breaks)


def shown(count: int, start_s: float = 0.0) -> list[Shown]:
    """Pictures 10 ms apart."""
    return [Shown(start_s + number / 100) for number in range(count)]


@dataclass
class Camera:
    """Scripts played one after the other; the last one for ever."""

    scripts: list[Script]
    opened: int = 0
    events: list[SourceEvent] = field(default_factory=list)
    source: LiveSource = field(init=False)

    def source_with(self, reopen: Reopen = QUICK) -> LiveSource:
        self.source = LiveSource(
            "rtsp://me:secret@camera/1", self._connect, reopen=reopen, on_event=self.events.append
        )
        return self.source

    def _connect(self) -> Script:
        script = self.scripts[min(self.opened, len(self.scripts) - 1)]
        self.opened += 1
        return script

    def told(self, kind: type) -> list[SourceEvent]:
        return [event for event in self.events if isinstance(event, kind)]


def readers() -> int:
    """Threads that read sources now."""
    return sum(thread.name == "source" for thread in threading.enumerate())


def test_a_busy_reader_gets_the_newest_and_the_rest_is_counted() -> None:
    camera = Camera([Script(shown(60), breaks="unplugged")])
    times = []

    def read_slowly() -> None:
        for picture in camera.source_with(Reopen(patience_s=0.0)):
            times.append(picture.pts_s)
            time.sleep(0.05)

    with pytest.raises(SourceError, match="unplugged"):
        read_slowly()
    assert times == sorted(times)
    assert len(times) < 40
    assert times[-1] == pytest.approx(0.59)
    (books,) = camera.told(SourceEnded)
    assert isinstance(books, SourceEnded)
    assert (books.num_pictures, books.num_lost) == (60, 1)
    assert len(times) + books.num_skipped == 60


def test_a_lost_source_is_opened_again_and_says_so() -> None:
    camera = Camera(
        [
            Script([], refuses="refused"),
            Script([], refuses="refused"),
            Script(shown(5), breaks="hung up"),
            Script(shown(5, start_s=7000.0)),
        ]
    )
    source = camera.source_with()
    times = []
    for picture in source:
        times.append(picture.pts_s)
        if camera.opened >= 6:
            source.stop()
    reasons = [event.reason for event in camera.told(SourceLost) if isinstance(event, SourceLost)]
    assert reasons[:3] == ["refused", "refused", "hung up"]
    assert reasons[3] == "rtsp://camera/1 has ended"
    opened = camera.told(SourceOpened)
    assert isinstance(opened[0], SourceOpened)
    assert (opened[0].width, opened[0].height, opened[0].attempt) == (4, 2, 3)
    assert camera.told(SourceClockJumped) == []  # Another connection has another clock.
    assert all(later >= earlier for earlier, later in pairwise(times))
    assert times[-1] < 5.0
    assert isinstance(camera.events[-1], SourceEnded)
    assert all(script.closed for script in camera.scripts[2:])
    until(lambda: readers() == 0)


def test_pauses_grow_and_start_small_after_a_good_connection() -> None:
    policy = Reopen(first_pause_s=0.5, max_pause_s=30.0)
    for attempt, bound_s in enumerate((0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0), start=1):
        pauses = [policy.pause_s(attempt) for _ in range(50)]
        assert bound_s / 2 <= min(pauses) <= max(pauses) <= bound_s
        assert len(set(pauses)) > 1  # Many cameras of one recorder do not come back at once.
    assert policy.pause_s(10_000) <= 30.0


def test_patience_is_counted_from_the_last_picture() -> None:
    camera = Camera([Script(shown(30)), Script([], refuses="refused")])
    started_s = time.monotonic()
    with pytest.raises(SourceError, match="refused"):
        list(camera.source_with(Reopen(0.4, first_pause_s=0.02, max_pause_s=0.1)))
    assert 0.6 < time.monotonic() - started_s < 5.0
    last = camera.told(SourceLost)[-1]
    assert isinstance(last, SourceLost)
    assert last.retry_s is None
    assert 0.4 <= last.lost_s < 3.0
    assert isinstance(camera.events[-1], SourceEnded)  # Told before the error is raised.


def test_without_a_limit_it_never_gives_up() -> None:
    assert Reopen().patience_s == math.inf
    camera = Camera([Script([], refuses="refused")])
    source = camera.source_with(Reopen(first_pause_s=0.001, max_pause_s=0.002))
    threading.Timer(0.3, source.stop).start()
    assert list(source) == []
    assert len(camera.told(SourceLost)) > 20


def test_a_source_that_never_opened_can_be_stopped() -> None:
    forever = threading.Event()
    camera = Camera([Script([], hangs=forever)])
    source = camera.source_with(Reopen(silence_s=60.0))
    threading.Timer(0.1, source.stop).start()
    started_s = time.monotonic()
    assert list(source) == []
    assert time.monotonic() - started_s < 2.0
    forever.set()
    until(lambda: readers() == 0)
    never_read = camera.source_with()
    never_read.stop()
    assert list(never_read) == []


def test_a_thread_that_hangs_is_left_and_few_of_them() -> None:
    forever = threading.Event()
    camera = Camera([Script([], hangs=forever)])
    source = camera.source_with(Reopen(first_pause_s=0.01, max_pause_s=0.01, silence_s=0.1))
    threading.Timer(3.5, source.stop).start()
    assert list(source) == []
    reasons = {event.reason for event in camera.told(SourceLost) if isinstance(event, SourceLost)}
    assert reasons == {"rtsp://camera/1 does not answer at all"}
    assert camera.opened == 2  # A third is not opened while two hang.
    forever.set()
    until(lambda: readers() == 0)


def test_it_goes_on_when_a_hanging_thread_is_left() -> None:
    forever = threading.Event()
    camera = Camera([Script([], hangs=forever), Script(shown(1000))])
    source = camera.source_with(Reopen(first_pause_s=0.01, max_pause_s=0.01, silence_s=0.1))
    pictures = iter(source)
    assert next(pictures).pts_s >= 0.0
    pictures.close()  # type: ignore[attr-defined]
    forever.set()
    until(lambda: readers() == 0)


def test_it_is_drained_while_nobody_reads() -> None:
    camera = Camera([Script(shown(2000), every_s=0.001)])
    source = camera.source_with()
    pictures = iter(source)
    next(pictures)
    before = source.num_pictures
    time.sleep(0.3)
    assert source.num_pictures > before + 20
    pictures.close()  # type: ignore[attr-defined]


def test_other_sizes_and_clocks_are_told_and_times_go_on() -> None:
    pictures = [*shown(20, 50.0), *shown(20), Shown(0.2, (8, 6)), *shown(20, 900.0)]
    camera = Camera([Script(pictures, every_s=0.002, breaks="over")])
    with pytest.raises(SourceError, match="over"):
        list(camera.source_with(Reopen(patience_s=0.0)))
    jumps = [event.jump_s for event in camera.events if isinstance(event, SourceClockJumped)]
    assert jumps == pytest.approx([-50.19, 899.8], abs=0.01)
    assert camera.told(SourceResized) == [SourceResized(8, 6), SourceResized(4, 2)]
    assert camera.source.num_pictures == 61


def test_what_comes_in_pieces_is_shown_one_by_one() -> None:
    camera = Camera([Script(shown(40), every_s=0.0, comes_in_pieces=True, breaks="over")])
    started_s = time.monotonic()
    with pytest.raises(SourceError):
        list(camera.source_with(Reopen(patience_s=0.0)))
    assert time.monotonic() - started_s >= 0.35


def test_what_has_an_end_ends_and_does_not_begin_again() -> None:
    camera = Camera([Script([], refuses="not yet"), Script(shown(10), ends=True)])
    assert len(list(camera.source_with())) + camera.source.num_skipped == 10
    assert isinstance(camera.events[-1], SourceEnded)
    broken = Camera([Script(shown(3), ends=True, breaks="truncated")])
    with pytest.raises(SourceError, match="truncated"):
        list(broken.source_with())
    assert broken.opened == 1


def test_a_bug_in_the_thread_reaches_the_reader_without_the_password() -> None:
    def connect() -> Script:
        raise KeyError("rtsp://me:secret@camera/1")

    source = LiveSource("rtsp://me:secret@camera/1", connect)
    with pytest.raises(SourceError, match="KeyError") as raised:
        list(source)
    assert "secret" not in "".join(traceback.format_exception(raised.value)) + repr(source)


def test_it_can_be_read_once() -> None:
    camera = Camera([Script(shown(1000))])
    source = camera.source_with()
    next(iter(source))
    with pytest.raises(SourceError, match="read once"):
        next(iter(source))


def test_opening_and_closing_leaves_nothing() -> None:
    cameras = []
    for _ in range(500):
        camera = Camera([Script(shown(1000), every_s=0.0)])
        pictures = iter(camera.source_with())
        next(pictures)
        pictures.close()  # type: ignore[attr-defined]
        cameras.append(camera)
    until(lambda: readers() == 0)
    assert [camera.scripts[0].closed for camera in cameras] == [1] * 500


def test_the_clock_only_goes_forward() -> None:
    clock = SteadyClock(0.04)
    assert clock.show(5.0) == (0.0, None)
    assert clock.show(5.04)[0] == pytest.approx(0.04)
    assert clock.show(5.02) == (pytest.approx(0.04), None)  # Disorder, not another clock.
    assert clock.show(5.08)[0] == pytest.approx(0.08)
    assert clock.show(3.0) == (pytest.approx(0.12), pytest.approx(-2.08))
    assert clock.show(3.04) == (pytest.approx(0.16), None)
    assert clock.show(8.04) == (pytest.approx(5.16), None)  # A slow camera, or a still.
    assert clock.show(100.0) == (pytest.approx(5.2), pytest.approx(91.96))
    assert clock.show(None) == (pytest.approx(5.24), None)
    clock.resume(9.0)
    assert clock.show(1.0) == (pytest.approx(9.0), None)
    assert clock.show(1.04) == (pytest.approx(9.04), None)
