"""Limits of how many calls may be under way at once, which no single caller can use up.

Where an `EvictingLimit` is reached, the oldest call of the owner who has most of them ends, so that
a flood from one connection ends its own calls, and a newcomer always gets in. Knows no RPC.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from groundstream.errors import Overloaded

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


class ConcurrencyLimit:
    """A fixed number of places; a call that has one keeps it."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._num_taken = 0

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """One place.

        Raises:
            Overloaded: there is none.
        """
        if self._num_taken >= self._size:
            raise Overloaded(
                f"{self._size} calls and streams are open here, which is all there may be; "
                "try again later",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._num_taken += 1
        try:
            yield
        finally:
            self._num_taken -= 1
