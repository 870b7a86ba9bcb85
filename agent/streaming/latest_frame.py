"""A one-slot inbox: the newest item wins, the one it displaces is counted.

For one producer and one consumer on one event loop. Knows nothing of frames or sessions.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestFrame(Generic[T]):
    """Holds at most one unread item, so memory and delay stay bounded whatever the input rate."""

    def __init__(self) -> None:
        self.num_superseded = 0
        """Items displaced before anybody read them."""
        self._item: T | None = None
        self.closed = False
        """True when no more items can be put."""
        self._changed = asyncio.Event()

    def __len__(self) -> int:
        return 0 if self._item is None else 1

    def put(self, item: T) -> T | None:
        """Make `item` the newest; returns the unread item it displaced."""
        if self.closed:
            raise RuntimeError("the inbox is closed")
        displaced, self._item = self._item, item
        if displaced is not None:
            self.num_superseded += 1
        self._changed.set()
        return displaced

    def close(self) -> None:
        """No more items will come; the unread one can still be taken."""
        self.closed = True
        self._changed.set()

    async def take(self) -> T | None:
        """The newest item, waiting for one if need be; None once closed and empty."""
        while self._item is None and not self.closed:
            self._changed.clear()
            await self._changed.wait()
        item, self._item = self._item, None
        return item
