"""The way out of one stream: one message at a time, built at the moment it is sent."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from deployments.wire import stream_messages
from deployments.wire.status import Failure


class ResponseWriter:
    """Writes to an open call; several tasks share it."""

    def __init__(self, rpc: Any, failures: Counter[str]) -> None:
        """`failures`: where errors are counted by the name of their code."""
        self._rpc = rpc
        self._failures = failures
        self.writing = asyncio.Lock()
        """Held by the task that decides what goes out next, which may then call `write`."""

    async def write(self, message: Any) -> None:
        """Send a message; the caller holds `writing`."""
        assert self.writing.locked()
        await self._rpc.write(message)

    async def send(self, build: Callable[[], Any]) -> None:
        """Send what `build` returns once it is its turn, so that books are those of that moment."""
        async with self.writing:
            await self._rpc.write(build())

    async def send_failure(self, failure: Failure, **about: int) -> None:
        """Report an error about one item; the stream goes on."""
        self._failures[failure.code] += 1
        await self.send(lambda: stream_messages.failure_response(failure, **about))
