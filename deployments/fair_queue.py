"""So many places at once, for which owners take turns: whoever has fewest is next.

Knows neither what is done there nor who the owners are.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from agent.tenant_share import most_of_one
from groundstream.errors import Overloaded


@dataclass(frozen=True)
class _Waiting:
    places: int
    turn: asyncio.Future[None]


class FairQueue:
    """So many at once; for one event loop."""

    def __init__(self, num_at_once: int, *, most_each: int | None = None) -> None:
        """A queue without anybody in it.

        Args:
            num_at_once: places.
            most_each: of one owner's at most; None: see `agent.tenant_share.most_of_one`.
        """
        self._num_at_once = num_at_once
        self._most_each = most_of_one(num_at_once) if most_each is None else most_each
        self._under_way: Counter[str] = Counter()
        self._lines: OrderedDict[str, deque[_Waiting]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def turn(
        self, owner: str, *, places: int = 1, within_s: float | None = None
    ) -> AsyncIterator[None]:
        """So many places together, when it is this owner's turn.

        Raises:
            Overloaded: it was not in time.
        """
        places = min(places, self._most_each)
        if self._lines or not self._has_room(owner, places):
            await self._wait(owner, places, within_s)
        else:
            self._under_way[owner] += places
        try:
            yield
        finally:
            self._give_back(owner, places)

    async def _wait(self, owner: str, places: int, within_s: float | None) -> None:
        waiting = _Waiting(places, asyncio.get_running_loop().create_future())
        self._lines.setdefault(owner, deque()).append(waiting)
        self._admit()
        try:
            async with asyncio.timeout(within_s):
                await waiting.turn
        except BaseException as error:
            if waiting.turn.done() and not waiting.turn.cancelled():
                self._give_back(owner, places)  # It came at the last moment.
            else:
                self._leave(owner, waiting)
            if isinstance(error, TimeoutError):
                raise Overloaded(
                    "the deadline passed while the question waited behind others of your own"
                ) from None
            raise

    def _has_room(self, owner: str, places: int) -> bool:
        total = sum(self._under_way.values())
        return total + places <= self._num_at_once and self._may_have(owner, places)

    def _may_have(self, owner: str, places: int) -> bool:
        return self._under_way[owner] + places <= self._most_each

    def _give_back(self, owner: str, places: int) -> None:
        self._under_way[owner] -= places
        if not self._under_way[owner]:
            del self._under_way[owner]
        self._admit()

    def _admit(self) -> None:
        """Let in the next, but none before one that needs more places than are free."""
        while (owner := self._next()) is not None:
            first = self._lines[owner][0]
            if not first.turn.done() and not self._has_room(owner, first.places):
                return
            self._lines[owner].popleft()
            if not self._lines[owner]:
                del self._lines[owner]
            else:
                self._lines.move_to_end(owner)
            if not first.turn.done():
                self._under_way[owner] += first.places
                first.turn.set_result(None)

    def _next(self) -> str | None:
        """Of those that wait and may have more: the one with fewest, then the longest waiting."""
        waiting = [
            owner for owner, line in self._lines.items() if self._may_have(owner, line[0].places)
        ]
        return min(waiting, key=lambda owner: self._under_way[owner], default=None)

    def _leave(self, owner: str, waiting: _Waiting) -> None:
        line = self._lines.get(owner)
        if line is not None:
            with contextlib.suppress(ValueError):
                line.remove(waiting)
            if not line:
                del self._lines[owner]
        self._admit()
