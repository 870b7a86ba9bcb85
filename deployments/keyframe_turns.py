"""Which stream of a front end may have its next key frame answered: few at once, fair, restrained.

Streams ask when they have a frame that is worth it. Those that are refused stand in a line and
come again with their next frame, so that no picture grows old waiting; a turn goes to whoever in
the line went longest without one. Between turns lies a pause that grows with the strain on the
fast path, so that following all streams comes before seeing any of them better. Knows no frames.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from agent.settings import SharingSettings

_FORGET_S = 1.0
"""A stream in the line that has not asked again for so long does not want its turn any more."""
_MEMORY = 0.98
"""Per frame of any stream."""


@dataclass
class _InLine:
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
        self._line: dict[Hashable, _InLine] = {}
        self._last_turn: dict[Hashable, float] = {}
        self._strain = 0.0
        self._timer: asyncio.TimerHandle | None = None
        """The only one there is; set while somebody waits."""

    @property
    def strain(self) -> float:
        """0..1: share of recent frames that nobody had time to look at."""
        return self._strain

    def note_frame(self, *, looked_at: bool) -> None:
        """A frame of some stream was followed, or only predicted."""
        self._strain = _MEMORY * self._strain + (1.0 - _MEMORY) * (not looked_at)

    def try_take(self, stream: Hashable, *, rank: int = 1) -> bool:
        """A turn for this stream, now or not.

        Args:
            stream: whose turn it would be.
            rank: smaller goes first, whoever waited longer.
        """
        now_s = self._clock()
        known = self._line.get(stream)
        if known is not None and known.waiter is not None:
            return False
        self._line[stream] = _InLine(rank, now_s)
        if self._num_free(now_s) < 1 or self._first(now_s) != stream:
            return False
        self._give(stream, now_s)
        return True

    async def take(self, stream: Hashable, *, rank: int = 1) -> None:
        """A turn for this stream, as soon as it is its."""
        if self.try_take(stream, rank=rank):
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line[stream] = _InLine(rank, math.inf, waiter)
        self._look_again()
        try:
            await waiter
        except asyncio.CancelledError:
            if stream in self._taken:
                self.give_back(stream)
            self._line.pop(stream, None)
            self._look_again()
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
        self._line.pop(stream, None)
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
        self._line = {
            stream: entry for stream, entry in self._line.items() if entry.asked_s >= earliest_s
        }
        return min(
            self._line,
            key=lambda stream: (self._line[stream].rank, self._last_turn.get(stream, -math.inf)),
            default=None,
        )

    def _give(self, stream: Hashable, now_s: float) -> None:
        del self._line[stream]
        self._taken[stream] = self._last_turn[stream] = now_s

    def _hand_on(self) -> None:
        """Wake the first in the line, if it waits for that; others come by themselves."""
        now_s = self._clock()
        while self._num_free(now_s) > 0:
            first = self._first(now_s)
            waiter = None if first is None else self._line[first].waiter
            if first is None or waiter is None:
                break
            self._give(first, now_s)
            if not waiter.done():
                waiter.set_result(None)
        self._look_again()

    def _look_again(self) -> None:
        """Come back when a pause is over or somebody may have lost interest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if any(entry.waiter is not None for entry in self._line.values()):
            now_s = self._clock()
            soonest_s = min(self._resting, default=now_s + _FORGET_S) - now_s
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(min(max(soonest_s, 0.001), _FORGET_S), self._hand_on)
