"""A camera for tests of streams that something happens to: sends until told to stop, and counts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from groundstream.types import OutgoingFrame


class Camera:
    """One frame after the other."""

    def __init__(self, picture: Callable[[], bytes], *, every_s: float) -> None:
        """`picture`: the next one's bytes."""
        self.num_sent = 0
        self.is_on = True
        self._picture = picture
        self._every_s = every_s

    async def frames(self) -> AsyncIterator[OutgoingFrame]:
        """Numbered from zero."""
        while self.is_on:
            yield OutgoingFrame(self._picture(), self.num_sent, capture_time_ns=time.time_ns())
            self.num_sent += 1
            await asyncio.sleep(self._every_s)
