"""Connections to the console: how many, and how long one may take to say what it wants.

An unfinished request costs its sender nothing, so it may not keep others out: it has a few
seconds, and where there are too many connections the oldest unfinished ones end first. Knows
HTTP through uvicorn alone.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 128
"""With those of open pages, which stay."""
REQUEST_S = 10.0
"""From the first byte of a request, or a new connection, to the end of its head."""


class PatientProtocol(H11Protocol):
    """uvicorn's protocol, with limits on what is unfinished."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self._limit: asyncio.TimerHandle | None = None
        self._since_s = self.loop.time()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A new connection; the oldest that only waits is closed for it."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._begin_wait()
        if len(self.connections) > MAX_CONNECTIONS:
            waiting = [c for c in self.connections if isinstance(c, PatientProtocol)]
            idle = [c for c in waiting if not c._is_at_work] or [self]
            min(idle, key=lambda connection: connection._since_s).transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._end_wait()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A part of a request, or all of it."""
        super().data_received(data)
        if self._is_at_work or self not in self.connections:
            self._end_wait()
        elif self._limit is None:
            self._begin_wait()

    @property
    def _is_at_work(self) -> bool:
        """Whether a request is being answered."""
        return self.cycle is not None and not self.cycle.response_complete

    def _begin_wait(self) -> None:
        self._since_s = self.loop.time()
        self._limit = self.loop.call_later(REQUEST_S, self._give_up)

    def _end_wait(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _give_up(self) -> None:
        self._limit = None
        # One that has become a WebSocket is another protocol's now.
        if not self._is_at_work and self in self.connections:
            self.transport.close()
