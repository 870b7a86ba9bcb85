"""Limits of how many calls may be under way at once, which no single caller can use up.

Where all places are taken, a newcomer gets one of those of the owner who has most. An
`EvictingLimit` ends the oldest call for it, so that a flood ends its own calls and everybody gets
in; a `YieldingLimit` ends a call that is silent, and refuses the newcomer where none is. Knows no
RPC.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from groundstream.errors import AgentError, Overloaded, StreamIdle

_RETRY_AFTER_S = 1.0

Owner = tuple[str, ...]
"""Whose a call is, the widest group first: calls are counted for each of its beginnings."""


@dataclass(eq=False)
class _Place:
    owner: Owner
    silence_s: Callable[[], float]
    limit: asyncio.Timeout


class _Limit(ABC):
    """A fixed number of places."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._places: list[_Place] = []
        """Oldest first."""

    @contextlib.asynccontextmanager
    async def taken(
        self, owner: Owner, silence_s: Callable[[], float] = lambda: 0.0
    ) -> AsyncIterator[None]:
        """One place.

        Args:
            owner: whose call it is.
            silence_s: seconds since the call did anything; 0 while it works.

        Raises:
            Overloaded, StreamIdle: there is no place, or a newcomer got it; see the class.
        """
        if len(self._places) >= self._size:
            ended = self._to_end(owner)
            self._places.remove(ended)
            ended.limit.reschedule(asyncio.get_running_loop().time())
        place = _Place(owner, silence_s, asyncio.timeout(None))
        self._places.append(place)
        try:
            async with place.limit:
                yield
        except TimeoutError:
            if not place.limit.expired():
                raise
            raise self._why_ended() from None
        finally:
            with contextlib.suppress(ValueError):
                self._places.remove(place)

    @abstractmethod
    def _to_end(self, newcomer: Owner) -> _Place:
        """Whose place a newcomer gets; raises Overloaded where it gets none."""

    @abstractmethod
    def _why_ended(self) -> AgentError:
        """What a call is told whose place went to a newcomer."""

    def _counts(self) -> Counter[Owner]:
        """Places of every group of owners."""
        return Counter(group for place in self._places for group in _groups(place.owner))


class EvictingLimit(_Limit):
    """Lets every call in, and ends the oldest of the owner who has most: Overloaded."""

    def __init__(self, size: int, what: str) -> None:
        """`what`: names the calls in it, for the error of those that are ended."""
        super().__init__(size)
        self._what = what

    def _to_end(self, newcomer: Owner) -> _Place:
        counts = self._counts()
        return max(self._places, key=lambda place: counts[place.owner])

    def _why_ended(self) -> AgentError:
        return Overloaded(
            f"more than {self._size} {self._what}; try again", retry_after_s=_RETRY_AFTER_S
        )


class YieldingLimit(_Limit):
    """Keeps calls that work, and ends silent ones: StreamIdle.

    The silent call that ends is one of the owner who has most calls, and only a newcomer who has
    fewer gets its place; any other is Overloaded.
    """

    def __init__(self, size: int, *, silent_s: float) -> None:
        """`silent_s`: a call counts as silent after so long."""
        super().__init__(size)
        self._silent_s = silent_s

    def _to_end(self, newcomer: Owner) -> _Place:
        counts = self._counts()
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
        return max(
            silent,
            key=lambda place: (*(counts[g] for g in _groups(place.owner)), place.silence_s()),
        )

    def _why_ended(self) -> AgentError:
        return StreamIdle(
            f"nothing happened on this call for {self._silent_s:g} s or longer, and somebody else "
            "needed its place; open it again, or resume the stream, when there is something to send"
        )


def _groups(owner: Owner) -> list[Owner]:
    return [owner[: depth + 1] for depth in range(len(owner))]


def _has_more(counts: Counter[Owner], owner: Owner, newcomer: Owner) -> bool:
    """Whether an owner has more calls than another, in the widest groups that tell them apart."""
    for group, other in zip(_groups(owner), _groups(newcomer), strict=True):
        if group != other:
            return counts[group] > counts[other]
    return False
