"""Limits of how many calls may be under way at once, which no single caller can use up.

Where an `EvictingLimit` is reached, the oldest call of the owner who has most of them ends, so that
a flood from one connection ends its own calls, and a newcomer always gets in. Knows no RPC.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from groundstream.errors import Overloaded, StreamIdle

T = TypeVar("T")

_RETRY_AFTER_S = 1.0


@dataclass(eq=False)
class _Call:
    whose: str
    work: asyncio.Task[Any]
    was_evicted: bool = False


class EvictingLimit:
    """Lets every call in, and ends calls of those who have most."""

    def __init__(self, size: int, what: str) -> None:
        """`what`: names the calls in it, for the error of those that are ended."""
        self._size = size
        self._what = what
        self._calls: list[_Call] = []

    async def run(self, whose: str, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns.

        Args:
            whose: the owner; one with many calls loses its own first.
            work: cancelled when another owner needs its place.

        Raises:
            Overloaded: it was ended for another.
        """
        while len(self._calls) >= self._size:
            self._evict_one()
        call = _Call(whose, asyncio.create_task(work))
        self._calls.append(call)
        try:
            result: T = await call.work
            return result
        except asyncio.CancelledError:
            if not call.was_evicted:
                raise
            raise Overloaded(
                f"more than {self._size} {self._what}; try again", retry_after_s=_RETRY_AFTER_S
            ) from None
        finally:
            with contextlib.suppress(ValueError):
                self._calls.remove(call)

    def _evict_one(self) -> None:
        counts = Counter(call.whose for call in self._calls)
        crowd = max(counts.values())
        oldest = next(call for call in self._calls if counts[call.whose] == crowd)
        self._calls.remove(oldest)
        oldest.was_evicted = True
        oldest.work.cancel()


Owner = tuple[str, ...]
"""Whose a call is, the widest group first: calls are counted for each of its beginnings."""


@dataclass(eq=False)
class _Place:
    owner: Owner
    silence_s: Callable[[], float]
    limit: asyncio.Timeout


class YieldingLimit:
    """A fixed number of places; where all are taken, a silent call ends for a newcomer.

    Calls that work keep theirs. The silent call that ends is one of whoever has most calls, and
    only a newcomer who has fewer gets its place.
    """

    def __init__(self, size: int, *, silent_s: float) -> None:
        """`silent_s`: a call counts as silent after so long."""
        self._size = size
        self._silent_s = silent_s
        self._places: list[_Place] = []

    @contextlib.asynccontextmanager
    async def taken(self, owner: Owner, silence_s: Callable[[], float]) -> AsyncIterator[None]:
        """One place.

        Args:
            owner: whose call it is.
            silence_s: seconds since it did anything; 0 while it works.

        Raises:
            Overloaded: there is none.
            StreamIdle: the call was silent, and a newcomer got its place.
        """
        if len(self._places) >= self._size:
            self._make_room(owner)
        place = _Place(owner, silence_s, asyncio.timeout(None))
        self._places.append(place)
        try:
            async with place.limit:
                yield
        except TimeoutError:
            if not place.limit.expired():
                raise
            raise StreamIdle(
                f"nothing happened on this call for {self._silent_s:g} s or longer, and somebody "
                "else needed its place; open it again, or resume the stream, when there is "
                "something to send"
            ) from None
        finally:
            with contextlib.suppress(ValueError):
                self._places.remove(place)

    def _make_room(self, newcomer: Owner) -> None:
        counts = Counter(group for place in self._places for group in _groups(place.owner))
        silent = [
            place
            for place in self._places
            if place.silence_s() >= self._silent_s and _has_more(counts, place.owner, newcomer)
        ]
        if not silent:
            raise Overloaded(
                f"{self._size} calls and streams are open here, which is all there may be; end "
                "those you do not need, or try again later",
                retry_after_s=_RETRY_AFTER_S,
            )
        longest = max(
            silent,
            key=lambda place: (*(counts[g] for g in _groups(place.owner)), place.silence_s()),
        )
        self._places.remove(longest)
        longest.limit.reschedule(asyncio.get_running_loop().time())


def _groups(owner: Owner) -> list[Owner]:
    return [owner[: depth + 1] for depth in range(len(owner))]


def _has_more(counts: Counter[Owner], owner: Owner, newcomer: Owner) -> bool:
    """Whether an owner has more calls than another, in the widest groups that tell them apart."""
    for group, other in zip(_groups(owner), _groups(newcomer), strict=True):
        if group != other:
            return counts[group] > counts[other]
    return False
