"""Who may look at a picture next: all streams of a front end share a few threads for it.

A frame waits only briefly for its look; when too many come, some are answered by prediction
instead, and whoever has not looked for longest looks first. Knows no frames.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from deployments.thread_priority import LOOK, give_way

T = TypeVar("T")


@dataclass(order=True)
class _Waiter:
    last_look_s: float
    number: int
    turn: asyncio.Future[None] = field(compare=False)


class Looks:
    """A few threads and a line before them; for one event loop."""

    def __init__(self, num_at_once: int) -> None:
        self._free = num_at_once
        self._threads = ThreadPoolExecutor(
            num_at_once,
            thread_name_prefix="look",
            initializer=give_way,
            initargs=(LOOK,),
        )
        self._line: list[_Waiter] = []
        self._numbers = itertools.count()

    async def take(self, last_look_s: float, *, patience_s: float | None) -> bool:
        """A turn; False when none came within `patience_s` (None: wait for it)."""
        if self._free > 0:
            self._free -= 1
            return True
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._line, _Waiter(last_look_s, next(self._numbers), turn))
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
        """A turn is over; the next in the line has it."""
        while self._line:
            turn = heapq.heappop(self._line).turn
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    async def run(self, look: Callable[[], T]) -> T:
        """Look, in one of the threads; the caller has a turn and gives it back."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, look)

    def close(self) -> None:
        """Free the threads."""
        self._threads.shutdown(wait=False)


def _came(turn: asyncio.Future[None]) -> bool:
    return turn.done() and not turn.cancelled()
