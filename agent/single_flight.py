"""One computation for all who ask for the same thing at the same time. Knows not what it is."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from agent.started_tasks import started

T = TypeVar("T")


class SingleFlight(Generic[T]):
    """Work by key; those who come while it is under way wait for it.

    Whoever goes away does not take the work along, unless nobody else waits for it.
    """

    def __init__(self) -> None:
        self._flights: dict[str, asyncio.Future[T]] = {}
        self._num_waiting: dict[str, int] = {}

    async def run(self, key: str, work: Callable[[], Awaitable[T]]) -> tuple[T, bool]:
        """The result of `work`, and whether this call joined one that was under way."""
        flight = self._flights.get(key)
        joined = flight is not None
        if flight is None:
            flight = started(work())
            self._flights[key] = flight
            flight.add_done_callback(lambda done: self._landed(key, done))
        self._num_waiting[key] = self._num_waiting.get(key, 0) + 1
        try:
            return await asyncio.shield(flight), joined
        finally:
            self._num_waiting[key] -= 1
            if self._num_waiting[key] == 0:
                del self._num_waiting[key]
                # Whoever comes from here on must not join work that is being given up.
                self._landed(key, flight)
                flight.cancel()

    def _landed(self, key: str, flight: asyncio.Future[T]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]
