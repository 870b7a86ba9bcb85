"""One computation for all callers that ask for the same thing at the same time.

It runs within the limits of its most patient caller. Knows nothing of what is computed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from agent.started_tasks import started
from agent.urgency import Limits, SharedLimits

T = TypeVar("T")


@dataclass
class _Flight(Generic[T]):
    result: asyncio.Future[T]
    limits: SharedLimits
    num_waiting: int = 0


class SingleFlight(Generic[T]):
    """Work by key; callers that come while it is under way wait for it.

    A caller that goes away does not take the work along, unless no other waits for it.
    """

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}

    def __contains__(self, key: str) -> bool:
        """Whether this work is under way."""
        return key in self._flights

    async def run(
        self, key: str, work: Callable[[SharedLimits], Awaitable[T]], limits: Limits
    ) -> tuple[T, bool]:
        """The result of `work`, and whether this call joined one that was under way.

        Args:
            key: names the work.
            work: does it, within limits that widen when a more patient caller joins.
            limits: of this caller.
        """
        flight = self._flights.get(key)
        joined = flight is not None
        if flight is None:
            shared = SharedLimits(limits)
            flight = self._flights[key] = _Flight(started(work(shared)), shared)
            flight.result.add_done_callback(lambda _: self._remove(key, flight))
        flight.limits.widen(limits)
        flight.num_waiting += 1
        try:
            return await asyncio.shield(flight.result), joined
        finally:
            flight.num_waiting -= 1
            if not flight.num_waiting:
                # A caller that comes from here on must not join work that is being given up.
                self._remove(key, flight)
                flight.result.cancel()

    def _remove(self, key: str, flight: _Flight[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
