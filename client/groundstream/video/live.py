"""A source that does not wait for its reader, opened again whenever it is lost.

One state machine, in `LiveSource`: every change of state is made under one lock, by the thread
that reads or by the one that waits for pictures.

    OPENING ──a picture──▶ PLAYING ──ended, stalled, broke──▶ PAUSING ──pause over──▶ OPENING
       └──refused, says nothing──────────────────────────────▶ PAUSING
    PAUSING ──patience used up──▶ OVER ◀──it has a last picture, or `stop`── any state

A thread of its own reads on, so that no old pictures pile up in the source while the reader is
busy, and no connection is lost for not being read. Knows no service.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from groundstream.enums import VideoCodec
from groundstream.errors import SourceError
from groundstream.events import (
    SourceClockJumped,
    SourceEnded,
    SourceEvent,
    SourceLost,
    SourceOpened,
    SourceResized,
)
from groundstream.locations import shown_location
from groundstream.pauses import growing_pause_s
from groundstream.video.clock import SteadyClock
from groundstream.video.coded import Coded, SourcePacket
from groundstream.video.pictures import RGBArray

_STEADY_S = 10.0
"""A connection that held so long was a good one: after it the pauses start small again."""
_STUCK_FACTOR = 3.0
"""Opening and reading end by themselves when the source says nothing; a call that takes so many
times as long hangs in the system (a name server, a device), and is left to itself."""
_MAX_STUCK = 2
"""Threads left to themselves; while there are so many, nothing is opened."""
_LOOK_S = 0.5
_LATE_S = 0.5
_MAX_WAITING_PACKETS = 60
"""One or two seconds; a reader that is so far behind goes on with the next key frame."""


@dataclass(frozen=True)
class SourceFrame:
    """One picture of a source."""

    rgb: RGBArray
    """(height, width, 3) uint8, upright."""
    pts_s: float
    """Time since the first picture, seconds; never less than that of the picture before."""
    capture_time_ns: int | None = None
    """When it was taken, by the clock of who took it, where the source says so (recordings)."""


@dataclass(frozen=True)
class Reopen:
    """How often, and how soon, a live source that is lost is opened again."""

    patience_s: float = math.inf
    """Give up after so long without a picture; 0: at once."""
    first_pause_s: float = 0.5
    max_pause_s: float = 30.0
    silence_s: float = 10.0
    """A source that says nothing for so long is lost."""

    def pause_s(self, attempt: int) -> float:
        """The pause after failure number `attempt`, from 1."""
        return growing_pause_s(attempt, first_s=self.first_pause_s, most_s=self.max_pause_s)


class Picture(Protocol):
    """A decoded picture whose pixels cost something."""

    @property
    def time_s(self) -> float | None: ...
    @property
    def size(self) -> tuple[int, int]: ...
    def rgb(self) -> RGBArray: ...


class Pictures(Protocol):
    """An open connection."""

    fps: float
    num_damaged: int
    passes_on: Collection[VideoCodec]

    @property
    def ends(self) -> bool: ...
    @property
    def comes_in_pieces(self) -> bool: ...
    def pictures(self) -> Iterator[Picture | Coded]: ...


class _State(Enum):
    OPENING = 1
    PLAYING = 2
    PAUSING = 3
    OVER = 4


class _Waiting:
    """What the reader has not taken yet: the newest picture, or packets without a gap."""

    def __init__(self) -> None:
        self._items: deque[tuple[Picture | Coded, float]] = deque()
        self._has_gap = False

    def __len__(self) -> int:
        return len(self._items)

    def put(self, picture: Picture | Coded, shown_s: float) -> int:
        """One more; returns how many are skipped for it, itself perhaps."""
        num_skipped = 0
        if not isinstance(picture, Coded) or len(self._items) >= _MAX_WAITING_PACKETS:
            num_skipped = len(self._items)
            self._items.clear()
            self._has_gap = isinstance(picture, Coded)
        if self._has_gap and isinstance(picture, Coded):
            # What builds on a packet that was skipped is of no use to any decoder.
            if not picture.is_key:
                return num_skipped + 1
            self._has_gap = False
        self._items.append((picture, shown_s))
        return num_skipped

    def take(self) -> tuple[Picture | Coded, float]:
        """The oldest."""
        return self._items.popleft()


class LiveSource:
    """The newest picture of a camera or a network stream; iterate it once.

    Pictures nobody asked for in time are skipped and counted.
    """

    is_live = True

    def __init__(
        self,
        name: str,
        connect: Callable[[], AbstractContextManager[Pictures]],
        *,
        reopen: Reopen | None = None,
        on_event: Callable[[SourceEvent], object] | None = None,
    ) -> None:
        """Nothing is opened yet.

        Args:
            name: what to call it; passwords in it are not shown.
            connect: opens it, raising SourceError.
            reopen: what to do when it is lost.
            on_event: told what happens, in the thread that iterates.
        """
        self.fps = 25.0
        """Nominal pictures per second; known once the source is open."""
        self.num_pictures = self.num_skipped = self.num_damaged = self.num_lost = 0
        """What `SourceEnded` says in the end."""
        self._name = shown_location(name)
        self._connect = connect
        self._reopen = reopen or Reopen()
        self._on_event = on_event
        self._changed = threading.Condition()
        # All below belongs to the lock.
        self._state = _State.OPENING
        self._turn = 0
        """Of the thread that reads; what another does or says counts for nothing."""
        self._passes_on: Collection[VideoCodec] = ()
        self._waiting = _Waiting()
        self._told: deque[SourceEvent] = deque()
        self._error: SourceError | None = None
        self._attempt = 0
        """Failures in a row without a connection that held."""
        self._tries = 0
        self._clock: SteadyClock | None = None
        self._size: tuple[int, int] | None = None
        self._first_s = self._held_s = self._seen_s = self._progress_s = 0.0
        """Moments: of the first picture of all, of this connection's first, of the last one, and
        when a thread last did something."""
        self._num_stuck = 0

    def __repr__(self) -> str:
        return f"LiveSource({self._name!r}, {self._state.name})"

    def __iter__(self) -> Iterator[SourceFrame]:
        """Pictures from the newest on, until the source is over.

        Raises:
            SourceError: it was lost for longer than `Reopen.patience_s`, or iterated twice.
        """
        for item in self.packets(()):
            assert isinstance(item, SourceFrame)
            yield item

    def packets(self, codecs: Collection[VideoCodec]) -> Iterator[SourceFrame | SourcePacket]:
        """The same, undecoded where it holds one of these codecs and need not be turned.

        Packets come without gaps; a reader that falls behind goes on with a key frame.
        """
        self._passes_on = codecs
        with self._changed:
            if self._turn or self._state is _State.OVER:
                if self._state is _State.OVER and not self._turn:
                    return  # Stopped before it began.
                raise SourceError(f"{self._name} is live and can be read once; open it again")
            self._seen_s = time.monotonic()
            self._start_thread(0.0)
        try:
            while (taken := self._next()) is not None:
                picture, shown_s = taken
                if isinstance(picture, Coded):
                    yield SourcePacket(picture, shown_s)
                else:
                    yield SourceFrame(picture.rgb(), shown_s)
        finally:
            self.stop()
            self._tell()

    def stop(self) -> None:
        """End the iteration, from any thread, in any state; returns at once."""
        with self._changed:
            self._finish(None)

    # ---- the side of the reader ----

    def _next(self) -> tuple[Picture | Coded, float] | None:
        while True:
            self._tell()
            with self._changed:
                if not self._waiting and self._state is not _State.OVER and not self._told:
                    self._changed.wait(_LOOK_S)
                    self._look_after_thread()
                if self._told:
                    continue
                if self._waiting:
                    return self._waiting.take()
                if self._state is _State.OVER:
                    if self._error is not None:
                        raise self._error
                    return None

    def _tell(self) -> None:
        """Hand over what happened; never with the lock held, for who listens may call us."""
        while True:
            with self._changed:
                if not self._told:
                    return
                event = self._told.popleft()
            if self._on_event is not None:
                self._on_event(event)

    def _look_after_thread(self) -> None:
        """Leave a thread to itself that hangs in a call which nobody can end."""
        limit_s = _STUCK_FACTOR * self._reopen.silence_s
        is_busy = self._state in (_State.OPENING, _State.PLAYING)
        if not is_busy or time.monotonic() - self._progress_s < limit_s:
            return
        self._num_stuck += 1
        pause_s = self._lose(f"{self._name} does not answer at all")
        if pause_s is not None:
            self._start_thread(pause_s)

    # ---- the side of the thread ----

    def _start_thread(self, pause_s: float) -> None:
        self._turn += 1
        self._progress_s = time.monotonic() + pause_s
        threading.Thread(
            target=self._run, args=(self._turn, pause_s), name="source", daemon=True
        ).start()

    def _run(self, turn: int, first_pause_s: float) -> None:
        try:
            pause_s: float | None = first_pause_s
            while pause_s is not None:
                with self._changed:
                    self._changed.wait_for(lambda: self._is_old(turn), pause_s)
                    self._changed.wait_for(
                        lambda: self._is_old(turn) or self._num_stuck < _MAX_STUCK
                    )
                    if self._is_old(turn):
                        return
                    self._state = _State.OPENING
                    self._tries += 1
                    self._progress_s = time.monotonic()
                reason = self._play(turn)
                with self._changed:
                    if self._is_old(turn):
                        return
                    if reason is None:
                        self._finish(None)
                        return
                    pause_s = self._lose(reason)
        except Exception as error:
            # A bug, or a decoder out of memory: the reader must hear of it, not wait for ever.
            with self._changed:
                if not self._is_old(turn):
                    words = shown_location(f"{type(error).__name__}: {error}")
                    self._finish(SourceError(f"reading {self._name} failed: {words}"))
        finally:
            with self._changed:
                if turn != self._turn and self._num_stuck:
                    self._num_stuck -= 1
                    self._changed.notify_all()

    def _play(self, turn: int) -> str | None:
        """Open it once and read until it is lost; why, or None where it has come to its end."""
        ends = False
        try:
            with self._connect() as opened:
                opened.passes_on = self._passes_on
                ends = opened.ends
                damaged_before = 0
                for picture in opened.pictures():
                    due_s = self._put(turn, opened, picture)
                    if due_s is None:
                        return "stopped"
                    with self._changed:
                        self.num_damaged += opened.num_damaged - damaged_before
                        damaged_before = opened.num_damaged
                        if ends or opened.comes_in_pieces:
                            self._wait_until_due(turn, due_s)
                return None if ends else f"{self._name} has ended"
        except SourceError as error:
            with self._changed:
                if ends and self._state is _State.PLAYING and not self._is_old(turn):
                    # Opened again it would begin again.
                    self._finish(error)
            return str(error)

    def _put(self, turn: int, opened: Pictures, picture: Picture | Coded) -> float | None:
        """Make it the newest; when it is to be shown, or None when nobody wants more."""
        now_s = time.monotonic()
        with self._changed:
            if self._is_old(turn):
                return None
            if self._state is _State.OPENING:
                self._opened(opened, picture.size, now_s)
            if picture.size != self._size:
                self._size = picture.size
                self._told.append(SourceResized(*picture.size))
            assert self._clock is not None
            shown_s, jump_s = self._clock.show(picture.time_s)
            if jump_s is not None:
                self._told.append(SourceClockJumped(jump_s))
            self._seen_s = self._progress_s = now_s
            self.num_pictures += 1
            self.num_skipped += self._waiting.put(picture, shown_s)
            self._changed.notify_all()
            return shown_s

    # ---- with the lock held ----

    def _wait_until_due(self, turn: int, due_s: float) -> None:
        """Where seconds of pictures come at once: until this one is to be shown."""
        wait_s = self._first_s + due_s - time.monotonic()
        if wait_s < -_LATE_S:
            # It had nothing for a while. To make up for that would send all that follows at once.
            self._first_s -= wait_s
        self._changed.wait_for(lambda: self._is_old(turn), max(0.0, wait_s))

    def _opened(self, opened: Pictures, size: tuple[int, int], now_s: float) -> None:
        self._state = _State.PLAYING
        self.fps = opened.fps
        self._held_s = now_s
        if self._clock is None:
            self._clock = SteadyClock(1.0 / opened.fps)
            self._first_s = now_s
        else:
            self._clock.resume(now_s - self._first_s, 1.0 / opened.fps)
        lost_s = now_s - self._seen_s
        self._told.append(SourceOpened(*size, self._tries, lost_s))
        self._size = size
        self._tries = 0

    def _lose(self, reason: str) -> float | None:
        """After a failure: how long to pause, or None when patience is used up."""
        now_s = time.monotonic()
        if self._state is _State.PLAYING and now_s - self._held_s >= _STEADY_S:
            self._attempt = 0
        self.num_lost += self._state is _State.PLAYING
        self._attempt += 1
        lost_s = now_s - self._seen_s
        patience_s = self._reopen.patience_s
        pause_s = min(self._reopen.pause_s(self._attempt), max(0.0, patience_s - lost_s))
        is_last = lost_s >= patience_s
        self._told.append(SourceLost(reason, self._attempt, lost_s, None if is_last else pause_s))
        if is_last:
            self._finish(SourceError(reason))
            return None
        self._state = _State.PAUSING
        self._changed.notify_all()
        return pause_s

    def _finish(self, error: SourceError | None) -> None:
        if self._state is _State.OVER:
            return
        self._state = _State.OVER
        self._error = error
        self._told.append(
            SourceEnded(self.num_pictures, self.num_skipped, self.num_damaged, self.num_lost)
        )
        self._changed.notify_all()

    def _is_old(self, turn: int) -> bool:
        return self._turn != turn or self._state is _State.OVER
