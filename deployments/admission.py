"""Who may be inside at once: rooms of a fixed size, in which nobody can take everybody's place.

A room that is full ends the oldest call of whoever has most in it, so that a flood from one
connection ends its own calls, and a newcomer always gets in. Knows no RPC.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from agent.errors import Overloaded

T = TypeVar("T")

_RETRY_AFTER_S = 1.0


@dataclass(eq=False)
class _Guest:
    whose: str
    work: asyncio.Task[Any]
    was_put_out: bool = False


class Room:
    """Takes everybody in, and puts out those who crowd it."""

    def __init__(self, size: int, what: str) -> None:
        """`what`: names the calls in it, for the error of those that are put out."""
        self._size = size
        self._what = what
        self._guests: list[_Guest] = []

    async def run(self, whose: str, work: Coroutine[Any, Any, T]) -> T:
        """What `work` returns.

        Args:
            whose: calls of the same owner crowd each other out first.
            work: cancelled when somebody else needs its place.

        Raises:
            Overloaded: it was put out.
        """
        while len(self._guests) >= self._size:
            self._put_one_out()
        guest = _Guest(whose, asyncio.create_task(work))
        self._guests.append(guest)
        try:
            result: T = await guest.work
            return result
        except asyncio.CancelledError:
            if not guest.was_put_out:
                raise
            raise Overloaded(
                f"more than {self._size} {self._what}; try again", retry_after_s=_RETRY_AFTER_S
            ) from None
        finally:
            with contextlib.suppress(ValueError):
                self._guests.remove(guest)

    def _put_one_out(self) -> None:
        counts = Counter(guest.whose for guest in self._guests)
        crowd = max(counts.values())
        oldest = next(guest for guest in self._guests if counts[guest.whose] == crowd)
        self._guests.remove(oldest)
        oldest.was_put_out = True
        oldest.work.cancel()


class Places:
    """A fixed number of places; those who have one keep it."""

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
