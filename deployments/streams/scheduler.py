"""How the streams of one front-end replica share what there is: tracking threads and key frames.

A frame waits only briefly for a thread; when too many come, some are answered by prediction
instead, and the stream that went longest without tracking goes first.

A stream asks for a turn before the model when it has a frame that is worth it. Those that are
refused stay in a queue and come again with their next frame, so that no picture grows old waiting;
a turn goes to the stream in the queue that went longest without one. Between turns lies a pause
that grows with the strain on the trackers, so that following all streams comes before seeing any of
them better. Knows no frames.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from agent.settings import SharingSettings
from agent.streaming.keyframe import KeyframeReason
from deployments.process_resources import TRACKING, lower_priority

T = TypeVar("T")

_FORGET_S = 1.0
"""A stream in the queue that has not asked again for so long does not want its turn any more."""
_MEMORY = 0.98
"""Per frame of any stream."""


@dataclass(order=True)
class _Waiter:
    last_tracked_s: float
    number: int
    turn: asyncio.Future[None] = field(compare=False)


class TrackingThreads:
    """A few threads and a queue before them; for one event loop."""

    def __init__(self, num_at_once: int) -> None:
        self._free = num_at_once
        self._threads = ThreadPoolExecutor(
            num_at_once,
            thread_name_prefix="tracking",
            initializer=lower_priority,
            initargs=(TRACKING,),
        )
        self._queue: list[_Waiter] = []
        self._numbers = itertools.count()

    async def take(self, last_tracked_s: float, *, patience_s: float | None) -> bool:
        """A turn; False when none came within `patience_s` (None: wait for it)."""
        if self._free > 0:
            self._free -= 1
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._queue, _Waiter(last_tracked_s, next(self._numbers), turn))
        try:
            async with asyncio.timeout(patience_s):
                await turn
        except TimeoutError:
            # Its turn may have come at the last moment.
            return _came(turn)
        except asyncio.CancelledError:
            if _came(turn):
                self.give_back()
            raise
        return True

    def give_back(self) -> None:
        """A turn is over; the next in the queue has it."""
        while self._queue:
            turn = heapq.heappop(self._queue).turn
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    async def run(self, work: Callable[[], T]) -> T:
        """Do the work in one of the threads; the caller has a turn and gives it back."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def close(self) -> None:
        """Free the threads."""
        self._threads.shutdown(wait=False)


def _came(turn: asyncio.Future[None]) -> bool:
    return turn.done() and not turn.cancelled()


@dataclass
class _Queued:
    """A stream that wants a turn."""

    rank: int
    asked_s: float
    waiter: asyncio.Future[None] | None = None


class KeyframeTurns:
    """Hands out turns; for one event loop."""

    def __init__(
        self, settings: SharingSettings, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.num_one_offs = 0
        """One-off calls under way; while there are any, one turn fewer is given."""
        self._settings = settings
        self._clock = clock
        self._taken: dict[Hashable, float] = {}
        self._resting: list[float] = []
        """When each turn that was given back may be taken again."""
        self._queue: dict[Hashable, _Queued] = {}
        self._last_turn: dict[Hashable, float] = {}
        self._strain = 0.0
        self._timer: asyncio.TimerHandle | None = None
        """The only one there is; set while a stream waits."""

    @property
    def strain(self) -> float:
        """0..1: share of recent frames that there was no time to track."""
        return self._strain

    def note_frame(self, *, tracked: bool) -> None:
        """A frame of some stream was followed, or only predicted."""
        self._strain = _MEMORY * self._strain + (1.0 - _MEMORY) * (not tracked)

    def try_take(self, stream: Hashable, *, rank: int = 1) -> bool:
        """A turn for this stream, now or not.

        Args:
            stream: whose turn it would be.
            rank: smaller goes first, however long others waited.
        """
        now_s = self._clock()
        known = self._queue.get(stream)
        if known is not None and known.waiter is not None:
            return False
        self._queue[stream] = _Queued(rank, now_s)
        if self._num_free(now_s) < 1 or self._first(now_s) != stream:
            return False
        self._give(stream, now_s)
        return True

    async def take(self, stream: Hashable, *, rank: int = 1) -> None:
        """A turn for this stream, as soon as it is its."""
        if self.try_take(stream, rank=rank):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue[stream] = _Queued(rank, math.inf, waiter)
        self._schedule()
        try:
            await waiter
        except asyncio.CancelledError:
            if stream in self._taken:
                self.give_back(stream)
            self._queue.pop(stream, None)
            self._schedule()
            raise

    def give_back(self, stream: Hashable) -> None:
        """The stream's key frame is answered, or could not be."""
        now_s = self._clock()
        took_s = now_s - self._taken.pop(stream)
        share = max(1.0 - self._strain, self._settings.least_keyframe_share)
        self._resting.append(now_s + took_s * (1.0 / share - 1.0))
        self._hand_on()

    def leave(self, stream: Hashable) -> None:
        """The stream has ended."""
        self._queue.pop(stream, None)
        self._last_turn.pop(stream, None)
        if stream in self._taken:
            self.give_back(stream)

    def _num_free(self, now_s: float) -> int:
        self._resting = [until_s for until_s in self._resting if until_s > now_s]
        most = self._settings.keyframes_at_once
        if self.num_one_offs and most > 1:
            most -= 1
        return most - len(self._taken) - len(self._resting)

    def _first(self, now_s: float) -> Hashable | None:
        """Whose turn it is; those who no longer want one are forgotten."""
        earliest_s = now_s - _FORGET_S
        self._queue = {
            stream: entry for stream, entry in self._queue.items() if entry.asked_s >= earliest_s
        }
        return min(
            self._queue,
            key=lambda stream: (self._queue[stream].rank, self._last_turn.get(stream, -math.inf)),
            default=None,
        )

    def _give(self, stream: Hashable, now_s: float) -> None:
        del self._queue[stream]
        self._taken[stream] = self._last_turn[stream] = now_s

    def _hand_on(self) -> None:
        """Wake the first in the queue, if it waits for that; others come by themselves."""
        now_s = self._clock()
        while self._num_free(now_s) > 0:
            first = self._first(now_s)
            waiter = None if first is None else self._queue[first].waiter
            if first is None or waiter is None:
                break
            self._give(first, now_s)
            if not waiter.done():
                waiter.set_result(None)
        self._schedule()

    def _schedule(self) -> None:
        """Come back when a pause is over or a waiting stream may have lost interest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if any(entry.waiter is not None for entry in self._queue.values()):
            now_s = self._clock()
            soonest_s = min(self._resting, default=now_s + _FORGET_S) - now_s
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(max(soonest_s, 0.001), _FORGET_S), self._hand_on)


class StreamTurn:
    """One stream's turn before the model: taken, held, and given back."""

    def __init__(self, turns: KeyframeTurns) -> None:
        self._turns = turns
        self._is_held = False

    def try_take(self, reason: KeyframeReason) -> bool:
        """Whether the stream has its turn, by now or already."""
        if not self._is_held:
            self._is_held = self._turns.try_take(self, rank=_rank(reason))
        return self._is_held

    async def take(self, reason: KeyframeReason) -> None:
        """Have the turn, as soon as it is this stream's."""
        await self._turns.take(self, rank=_rank(reason))
        self._is_held = True

    def give_back(self) -> None:
        """Give the turn back, if the stream has it."""
        if self._is_held:
            self._is_held = False
            self._turns.give_back(self)

    def leave(self) -> None:
        """The stream has ended."""
        self._is_held = False
        self._turns.leave(self)


class StreamScheduler:
    """Made once per front-end replica, on its event loop."""

    def __init__(self, settings: SharingSettings) -> None:
        self.settings = settings
        self.threads = TrackingThreads(settings.looks_at_once)
        self.keyframes = KeyframeTurns(settings)

    def close(self) -> None:
        """Free the threads."""
        self.threads.close()


def _rank(reason: KeyframeReason) -> int:
    """Streams that know nothing yet, or were told to look, come before those that know less."""
    urgent = (KeyframeReason.FIRST, KeyframeReason.QUERIES_CHANGED, KeyframeReason.REQUESTED)
    return 0 if reason in urgent else 1
